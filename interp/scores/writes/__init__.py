"""What a head writes."""

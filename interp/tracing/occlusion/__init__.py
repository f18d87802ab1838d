"""What happens to the answer when tokens or patches are taken away: hidden, replaced or removed."""

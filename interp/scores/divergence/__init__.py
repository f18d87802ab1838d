"""What changes in a head when a part of the input is withheld."""

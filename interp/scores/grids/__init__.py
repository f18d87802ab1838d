"""Where a head looks in an image: patches on a grid."""

"""What experiments on copying pairs share: the pairs, their settings, and tables of heads made piece by piece."""

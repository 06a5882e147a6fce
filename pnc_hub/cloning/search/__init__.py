"""Where to read the target and where to cut the source."""

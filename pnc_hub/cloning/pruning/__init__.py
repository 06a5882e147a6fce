"""Which part of the source's tail is kept."""

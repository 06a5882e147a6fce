"""What a clone does on held-out images."""

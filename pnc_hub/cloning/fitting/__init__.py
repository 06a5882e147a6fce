"""Adapters, gates and their training."""

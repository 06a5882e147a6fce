"""Clones as they come and go: folders, the Hub, their cards, locks, and the search for them."""

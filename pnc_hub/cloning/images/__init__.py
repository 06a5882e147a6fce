"""Images: where they come from, and in which parts and batches they are read."""

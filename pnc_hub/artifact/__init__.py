"""The artifact: its files, their strict reading, their schema, and how modules are built from them."""

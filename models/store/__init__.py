"""How a store is read and written."""

"""Database access, and what is true of all rows of the store together."""

"""The store as a whole: what is true of all its rows together."""

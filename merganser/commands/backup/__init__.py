"""The commands `merganser backup` and `merganser restore`."""

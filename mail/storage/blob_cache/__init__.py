"""A cache of objects of remote object stores in a local folder."""

"""Schema of the objects of the object stores."""

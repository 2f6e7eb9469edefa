"""Schema of users, their settings and quota."""

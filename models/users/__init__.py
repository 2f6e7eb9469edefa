"""Tables of users, their settings and quota."""

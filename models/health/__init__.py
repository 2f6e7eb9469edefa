"""Tables about the health and control of server processes."""

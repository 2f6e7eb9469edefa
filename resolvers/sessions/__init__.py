"""Open sessions of all processes: lists, termination and draining."""

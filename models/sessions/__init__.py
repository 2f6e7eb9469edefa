"""The open sessions of a process."""

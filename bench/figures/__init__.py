"""Goals, measurements and their report."""

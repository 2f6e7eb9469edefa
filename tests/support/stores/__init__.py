"""Databases of tests, their rows, and checks of their consistency."""

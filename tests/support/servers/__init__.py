"""Servers that tests start: Merganser, other programs, and scripted servers."""

"""Stores of released versions: an archive of a data folder with the answers to some queries."""

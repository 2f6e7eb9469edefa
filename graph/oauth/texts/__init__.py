"""Texts of the OAuth pages by language."""

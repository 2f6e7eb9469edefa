"""Credentials: who made them, and what they are good for."""

"""Composing, sending and scheduling of messages."""

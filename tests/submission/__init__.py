"""Tests of composing and sending messages."""

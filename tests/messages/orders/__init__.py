"""Tests of the orders of lists of messages."""

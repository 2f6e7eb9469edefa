"""Tests of lists of messages: their pages, order and cost."""

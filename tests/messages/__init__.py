"""Tests of messages, labels and threads."""

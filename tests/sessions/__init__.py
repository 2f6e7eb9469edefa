"""Tests of open sessions: lists, termination and draining."""

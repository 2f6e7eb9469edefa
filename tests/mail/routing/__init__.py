"""Tests of routes of outgoing mail."""

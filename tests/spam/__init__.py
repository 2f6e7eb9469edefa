"""Tests of spam filtering, sender rules and quarantine."""

"""End-to-end tests of recovery."""

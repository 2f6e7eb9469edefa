"""End-to-end tests of operation."""

"""End-to-end tests of delivery."""

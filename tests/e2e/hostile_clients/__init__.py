"""End-to-end tests of hostile clients."""

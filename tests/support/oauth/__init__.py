"""A browser and OAuth clients for tests."""

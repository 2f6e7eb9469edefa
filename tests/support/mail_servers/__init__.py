"""Mail servers and clients for tests."""

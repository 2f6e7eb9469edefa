"""Work that keeps the store sound while the server runs."""

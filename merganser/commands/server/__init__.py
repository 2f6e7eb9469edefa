"""Commands of the server: run it, prepare it, check it, and send it a test message."""

"""Password hashes, policy and reset."""

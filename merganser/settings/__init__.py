"""Settings of the environment."""

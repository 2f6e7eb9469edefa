"""The queue and rate limits for tests: operations and their results."""

"""The components of a server process: workers and listeners that can be held and released."""

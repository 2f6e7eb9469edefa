"""The environment, options, registration and leases of a process."""

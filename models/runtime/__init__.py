"""What a process is and does beside its tables: its registration, and its leases."""

"""Rate counters and limits of users."""

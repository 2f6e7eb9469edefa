"""PostgreSQL: connections, limits and readers."""

"""SQLite: connections, write lock and group commit."""

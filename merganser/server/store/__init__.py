"""Database migration and store locks."""

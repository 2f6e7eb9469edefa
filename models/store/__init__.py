"""Database access, and the columns and rules that all tables share."""

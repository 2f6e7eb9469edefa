"""Lists of users and of deleted users."""

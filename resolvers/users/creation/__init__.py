"""Creation of users."""

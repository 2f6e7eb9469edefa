"""Sessions: types, queries and mutations."""

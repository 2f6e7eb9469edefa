"""GraphQL types, queries and mutations of resources and their bookings."""

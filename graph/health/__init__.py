"""Health of components, storage, and control of servers: types, queries and mutations."""

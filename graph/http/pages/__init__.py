"""Web pages for people who use the API: GraphiQL and the documentation."""

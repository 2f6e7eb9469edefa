"""GraphQL types, HTTP routes and pages of the OAuth 2.1 and OpenID Connect server."""

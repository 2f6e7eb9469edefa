"""Identity providers of domains: schema, and the HTTP endpoints that providers use."""

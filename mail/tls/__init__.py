"""Server certificates and ACME client."""

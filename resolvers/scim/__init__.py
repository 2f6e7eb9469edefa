"""SCIM 2.0: users and groups of domains for a directory (RFC 7643, RFC 7644)."""

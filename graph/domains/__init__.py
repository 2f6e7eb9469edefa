"""Schema of domains, aliases and DKIM keys."""

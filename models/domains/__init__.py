"""Tables of domains, aliases and DKIM keys."""

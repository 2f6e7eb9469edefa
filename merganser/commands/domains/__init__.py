"""Commands about domains and DKIM keys."""

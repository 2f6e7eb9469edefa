"""Commands that export and import accounts."""

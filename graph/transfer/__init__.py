"""Schema of export and import of accounts."""

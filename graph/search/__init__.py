"""Schema of search and saved searches."""

"""Tables of search and saved searches."""

"""The log store: entries of all components, apart from the database of the mail."""

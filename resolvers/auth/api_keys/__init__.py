"""API keys: values, rights, lists and changes."""

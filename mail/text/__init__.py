"""Text: languages, confusable characters, bounded regular expressions."""

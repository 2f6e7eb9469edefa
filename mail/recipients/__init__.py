"""Resolution of recipient addresses."""

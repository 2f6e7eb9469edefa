"""Routes by which other programs find this server, its policies and its certificates."""

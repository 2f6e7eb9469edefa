"""Schema of nodes and user affinities."""

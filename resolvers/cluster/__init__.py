"""Nodes, user affinities, and requests to all processes of the platform."""

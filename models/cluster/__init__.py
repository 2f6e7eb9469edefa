"""Nodes of the platform, and requests between the processes of all servers."""

"""Bans of networks: policy, stored bans, and the networks that a process refuses."""

"""Checks of an incoming message before delivery."""

"""Subscriptions over WebSocket and server-sent events."""

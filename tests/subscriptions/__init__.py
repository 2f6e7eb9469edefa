"""Tests of WebSocket and server-sent events."""

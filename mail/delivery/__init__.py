"""Delivery of received messages to mailboxes and forwards."""

"""Schema of webhooks and push notifications."""

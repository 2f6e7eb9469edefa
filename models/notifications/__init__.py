"""Tables of webhooks and push notifications."""

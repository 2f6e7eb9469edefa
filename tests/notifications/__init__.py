"""Tests of webhooks and push notifications."""

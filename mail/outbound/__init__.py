"""SMTP client and queue worker."""

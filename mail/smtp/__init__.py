"""SMTP and LMTP servers."""

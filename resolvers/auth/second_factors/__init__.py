"""TOTP, WebAuthn and recovery codes."""

"""Base64url without padding (RFC 4648, section 5), as JWT, PKCE, WebAuthn and Web Push use it."""

from base64 import urlsafe_b64encode


def encode_base64url(raw: bytes) -> str:
    """Return bytes in base64url without padding."""
    return urlsafe_b64encode(raw).decode().rstrip("=")

"""Blobs: bytes kept once per tenant by their SHA-256, and messages made of them."""

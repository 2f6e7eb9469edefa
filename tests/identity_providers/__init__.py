"""Tests of sign-in at OpenID providers."""

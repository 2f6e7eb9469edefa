"""Quota and limits of users."""

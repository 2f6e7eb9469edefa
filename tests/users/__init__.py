"""Tests of users, their settings and quota."""

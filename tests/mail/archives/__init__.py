"""Tests of mail: archives."""

"""Tests of mail: authentication."""

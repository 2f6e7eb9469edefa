"""Tests of mail: runtime."""

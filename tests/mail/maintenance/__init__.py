"""Tests of mail: maintenance."""

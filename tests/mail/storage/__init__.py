"""Tests of mail: storage."""

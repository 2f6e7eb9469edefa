"""Tests of stored files and uploads."""

"""Tests of mail: scanners."""

"""Tests of connectors that fetch mail from other servers."""

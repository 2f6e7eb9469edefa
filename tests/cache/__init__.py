"""Tests of caches and pending writes."""

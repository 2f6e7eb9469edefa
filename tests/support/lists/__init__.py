"""Tests of lists: pages, filters and selections."""

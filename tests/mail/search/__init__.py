"""Tests of search and saved searches."""

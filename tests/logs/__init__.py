"""Tests of the log store and of the fields that read it."""

"""Tests of mail: smtp."""

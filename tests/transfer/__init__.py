"""Tests of export and import of accounts."""

"""Tests of mutations that change many messages at once."""

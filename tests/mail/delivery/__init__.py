"""Tests of mail: delivery."""

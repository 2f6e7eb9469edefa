"""Tests of mail: consistency."""

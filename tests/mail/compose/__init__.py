"""Tests of mail: compose."""

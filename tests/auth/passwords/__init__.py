"""Tests of passwords auth."""

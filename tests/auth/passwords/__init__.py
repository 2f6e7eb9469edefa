"""Tests of passwords and sign-ins with passwords."""

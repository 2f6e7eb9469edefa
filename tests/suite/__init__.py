"""Tests of the test suite: its rules, selection and repetition of tests."""

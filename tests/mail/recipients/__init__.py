"""Tests of mail: recipients."""

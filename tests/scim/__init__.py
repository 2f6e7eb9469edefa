"""Tests of SCIM 2.0."""

"""Tests of domains, aliases and DKIM keys."""

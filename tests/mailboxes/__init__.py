"""Tests of mailboxes and shares."""

"""Tests of administration: settings, tasks, logs and legal holds."""

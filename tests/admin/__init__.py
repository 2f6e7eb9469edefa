"""Tests of administration: settings, tasks, logs and audits."""

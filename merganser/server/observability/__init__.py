"""Logs and OpenTelemetry export."""

"""Measure the operation of a platform: sessions, log entries and bans."""

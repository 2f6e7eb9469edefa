"""Crash rounds: servers are killed under load, and all mail is accounted for."""

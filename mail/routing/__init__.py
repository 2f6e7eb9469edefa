"""Routes, MX hosts and TLS requirements of outgoing mail."""

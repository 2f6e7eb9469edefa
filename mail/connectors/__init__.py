"""Clients of remote IMAP and POP3 servers, from which connectors fetch mail."""

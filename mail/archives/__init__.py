"""Accounts as files: mbox, ZIP of .eml, tar of a Maildir, lines of JSON."""

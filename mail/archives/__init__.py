"""Mail of an account in files: mbox, ZIP of .eml files, tar of a Maildir, JSON lines."""

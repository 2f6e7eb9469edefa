"""Asking scanners about mail that comes in, and is sent: rspamd by HTTP, clamd by its own protocol.

Each is asked once for all recipients of a message, both at the same time. One that does not answer
loses no mail: the message is taken as if nobody had looked, or comes again later, as the setting
says.
"""

from mail.scanners.scan_requests import look, of_sent

__all__ = ["look", "of_sent"]

"""Scan messages with Rspamd (HTTP) and ClamAV (clamd protocol).

Each scanner scans a message once for all recipients; both run at the same time. If a scanner fails,
the setting decides: the message is accepted without a scan, or deferred.
"""

from mail.scanners.scan_requests import scan_incoming_and_store_result, scan_outgoing_if_enabled

__all__ = [
    "scan_incoming_and_store_result",
    "scan_outgoing_if_enabled",
]

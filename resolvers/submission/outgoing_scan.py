"""Scan messages of users for viruses and spam before they are queued."""

import logging
from collections.abc import Sequence

from mail.envelope.client import SmtpClientInfo
from mail.inbound.scan_rejection import SpamRefused, VirusRefused, require_sendable_scan_result
from mail.scanners import scan_outgoing_if_enabled
from mail.scanners.rspamd import ScanEnvelope
from models.errors import Forbidden
from models.observability import metrics
from models.store.columns import ColumnRow
from resolvers.context import Context

log = logging.getLogger(__name__)

REFUSED_MESSAGES = metrics.counter(
    "merganser_submissions_rejected",
    "Messages of users that were not queued: virus, spam.",
    "reason",
)


def is_enabled(ctx: Context) -> bool:
    """True if messages of users are scanned."""
    return ctx.environment.options.outbound_scan != "off"


async def scan_and_require_sendable(
    ctx: Context, account: ColumnRow, raw: bytes, sender: str, recipients: Sequence[str]
) -> None:
    """Raise Forbidden if a message contains a virus or is spam. Does nothing if scanning is off.

    Reads `id` and `username` of the account. Raises ServiceUnavailable if a scanner does not answer
    and mail waits for it. Raises Forbidden inside a transaction, which would be locked during the
    scan.
    """
    if not is_enabled(ctx):
        return
    if ctx.is_writing:
        raise Forbidden(
            "An @atomic request can't send a message that is scanned for spam and viruses after "
            "another field has changed something."
        )
    client = SmtpClientInfo(ctx.client_ip, "", username=account.username)
    scan = await scan_outgoing_if_enabled(
        ctx.environment, raw, ScanEnvelope(sender, recipients, client)
    )
    try:
        require_sendable_scan_result(scan)
    except SpamRefused as found:
        reason = "virus" if isinstance(found, VirusRefused) else "spam"
        REFUSED_MESSAGES.add(reason)
        log.warning(
            "Outgoing message rejected by a scanner", extra={"user": account.id, "reason": reason}
        )
        raise Forbidden(f"The message was not sent: {found.message}") from None

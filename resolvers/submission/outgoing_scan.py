"""Scan messages of users for viruses and spam before they are queued."""

import logging
from collections.abc import Sequence

from mail.envelope.client import Client
from mail.inbound.scan_rejection import Infected, Unwanted, check
from mail.scanners import of_sent
from mail.scanners.rspamd import Envelope
from models.errors import Forbidden
from models.observability import metrics
from models.store.columns import Picked
from resolvers.context import Context

log = logging.getLogger(__name__)

REFUSED = metrics.counter(
    "merganser_sent_refused", "Messages of our users that were not queued.", "reason"
)


def looks(ctx: Context) -> bool:
    """True if messages of users are scanned."""
    return ctx.world.options.sent_scan != "off"


async def checked(
    ctx: Context, account: Picked, raw: bytes, sender: str, recipients: Sequence[str]
) -> None:
    """Raise Forbidden if a message contains a virus or is spam. Does nothing if scanning is off.

    Reads `id` and `username` of the account. Raises Unavailable if a scanner does not answer and
    mail waits for it. Raises Forbidden inside a transaction, which would be locked during the
    scan.
    """
    if not looks(ctx):
        return
    if ctx.writing:
        raise Forbidden("a message that is looked into takes no part in a unit")
    client = Client(ctx.client_ip, "", authenticated=account.username)
    scan = await of_sent(ctx.world, raw, Envelope(sender, recipients, client))
    try:
        check(scan)
    except Unwanted as found:
        reason = "virus" if isinstance(found, Infected) else "spam"
        REFUSED.add(reason)
        log.warning("what a user sends was refused", extra={"user": account.id, "reason": reason})
        raise Forbidden(f"it is not sent: {found.message}") from None

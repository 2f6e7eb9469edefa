"""Refuse messages because of their spam verdict or scan result."""

from mail.inbound.incoming_message import IncomingMessage
from mail.inbound.spam_check import RecipientVerdict
from mail.spam.scan_result import ScanResult
from mail.spam.verdict import DEFAULT_REJECT_POINTS
from models.errors import Conflict
from models.runtime.environment import Environment


class SpamRefused(Conflict):
    """The message is refused as spam. A retry does not help."""


class VirusRefused(SpamRefused):
    """The message is refused because of a virus."""


async def require_accepted_by_verdict(
    _environment: Environment, incoming: "IncomingMessage", recipient_verdict: RecipientVerdict
) -> None:
    """Raise SpamRefused or VirusRefused if the verdict refuses the message.

    Quarantined messages don't reach this check.
    """
    if not recipient_verdict.verdict.is_refused:
        return
    if incoming.message.scan and incoming.message.scan.virus_name:
        raise VirusRefused("The message contains a virus.")
    raise SpamRefused("The message is spam.")


def require_forwardable(incoming: "IncomingMessage") -> None:
    """Raise SpamRefused or VirusRefused if a message must not be forwarded."""
    require_sendable_scan_result(incoming.message.scan)


def require_sendable_scan_result(scan_result: ScanResult | None) -> None:
    """Raise SpamRefused or VirusRefused if a message with this scan result must not leave."""
    if scan_result is None:
        return
    if scan_result.virus_name:
        raise VirusRefused("The message contains a virus.")
    if scan_result.is_forced_reject or (
        scan_result.score is not None and scan_result.score >= DEFAULT_REJECT_POINTS
    ):
        raise SpamRefused("The message is spam.")

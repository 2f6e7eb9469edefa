"""Refuse messages because of their spam verdict or scan result."""

from mail.inbound.incoming_message import Mail
from mail.inbound.spam_check import Judged
from mail.spam.scan_result import Scan
from mail.spam.verdict import REJECT
from models.errors import Conflict
from models.runtime.environment import World


class Unwanted(Conflict):
    """The message is refused as spam. A retry does not help."""


class Infected(Unwanted):
    """The message is refused because of a virus."""


async def turn_away(_world: World, mail: "Mail", judged: Judged) -> None:
    """Raise SpamRefused or VirusRefused if the verdict refuses the message.

    Quarantined messages don't reach this check.
    """
    if not judged.verdict.refused:
        return
    if mail.letter.scan and mail.letter.scan.virus:
        raise Infected("there is a virus in it")
    raise Unwanted("it is spam")


def check_onward(mail: "Mail") -> None:
    """Raise SpamRefused or VirusRefused if a message must not be forwarded."""
    check(mail.letter.scan)


def check(scan: Scan | None) -> None:
    """Raise SpamRefused or VirusRefused if a message with this scan result must not leave."""
    if scan is None:
        return
    if scan.virus:
        raise Infected("there is a virus in it")
    if scan.forced or (scan.score is not None and scan.score >= REJECT):
        raise Unwanted("it is spam")

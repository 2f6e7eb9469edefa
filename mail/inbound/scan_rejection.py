"""Mail that scanners have found to be worse than its recipient takes."""

from mail.inbound.incoming_message import Mail
from mail.inbound.spam_check import Judged
from mail.spam.scan_result import Scan
from mail.spam.verdict import REJECT
from models.errors import Conflict
from models.runtime.environment import World


class Unwanted(Conflict):
    """It is spam beyond what its recipient takes; to come again does not help."""


class Infected(Unwanted):
    """There is a virus in it."""


async def turn_away(_world: World, mail: "Mail", judged: Judged) -> None:
    """Unwanted where the verdict for a recipient is that the message is refused.

    What is held instead does not come here.
    """
    if not judged.verdict.refused:
        return
    if mail.letter.scan and mail.letter.scan.virus:
        raise Infected("there is a virus in it")
    raise Unwanted("it is spam")


def check_onward(mail: "Mail") -> None:
    """Unwanted where a message is not to be sent on to others in our name."""
    check(mail.letter.scan)


def check(scan: Scan | None) -> None:
    """Unwanted where a message in which this was found is not to leave in our name."""
    if scan is None:
        return
    if scan.virus:
        raise Infected("there is a virus in it")
    if scan.forced or (scan.score is not None and scan.score >= REJECT):
        raise Unwanted("it is spam")

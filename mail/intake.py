"""What is counted of mail that comes in."""

from collections.abc import Sequence

from models import meters

RECIPIENTS = meters.counter(
    "merganser_lmtp_recipients",
    "Recipients of mail that came in: delivered; later, refused for now; refused for good.",
    "outcome",
)
BYTES = meters.counter("merganser_lmtp_bytes", "Bytes of messages delivered to somebody.")
SESSIONS = meters.level("merganser_lmtp_sessions", "LMTP sessions that are open.")
OUTCOMES = {"2": "delivered", "4": "later", "5": "refused"}  # by what a reply begins with


def count(replies: Sequence[str], size: int = 0) -> None:
    """Count the replies to the recipients of a message of so many bytes."""
    for reply in replies:
        RECIPIENTS.add(OUTCOMES.get(reply[:1], meters.OTHER))
    if any(reply.startswith("2") for reply in replies):
        BYTES.add(by=size)

"""Metrics of received mail."""

from collections.abc import Sequence

from models.observability import metrics

OUTCOMES = {"2": "delivered", "4": "later", "5": "refused"}  # by the first digit of the reply


class Intake:
    """The metrics of one protocol."""

    def __init__(self, name: str, shown: str) -> None:
        begins = f"merganser_{name}"
        self.recipients = metrics.counter(
            f"{begins}_recipients",
            f"Recipients of mail that came by {shown}: delivered; later, refused for now; "
            "refused for good.",
            "outcome",
        )
        self.bytes = metrics.counter(
            f"{begins}_bytes", f"Bytes of messages that came by {shown} and were taken."
        )
        self.sessions = metrics.level(f"{begins}_sessions", f"{shown} sessions that are open.")

    def count(self, replies: Sequence[str], size: int = 0) -> None:
        """Count the replies to the recipients of a message, and its bytes if one accepted it."""
        for reply in replies:
            self.recipients.add(OUTCOMES.get(reply[:1], metrics.OTHER))
        if any(reply.startswith("2") for reply in replies):
            self.bytes.add(by=size)


LMTP = Intake("lmtp", "LMTP")
SMTP = Intake("smtp", "SMTP")
SUBMISSION = Intake("submission", "submission")

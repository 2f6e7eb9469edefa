"""Metrics of received mail."""

from collections.abc import Sequence

from models.observability import metrics

OUTCOME_BY_DIGIT = {
    "2": "delivered",
    "4": "later",
    "5": "refused",
}  # by the first digit of the reply


class ProtocolMetrics:
    """The metrics of one protocol."""

    def __init__(self, metric_prefix: str, protocol_name: str) -> None:
        name_prefix = f"merganser_{metric_prefix}"
        self.recipients = metrics.counter(
            f"{name_prefix}_recipients",
            f"Recipients of messages received by {protocol_name}: delivered; later, temporarily "
            "refused; refused, permanently.",
            "outcome",
        )
        self.received_bytes = metrics.counter(
            f"{name_prefix}_bytes", f"Bytes of accepted messages received by {protocol_name}."
        )
        self.open_sessions = metrics.up_down_counter(
            f"{name_prefix}_sessions", f"Open {protocol_name} connections."
        )

    def count_replies(self, replies: Sequence[str], message_size: int = 0) -> None:
        """Count the replies to the recipients of a message, and its bytes if one accepted it."""
        for reply in replies:
            self.recipients.add(OUTCOME_BY_DIGIT.get(reply[:1], metrics.OTHER))
        if any(reply.startswith("2") for reply in replies):
            self.received_bytes.add(amount=message_size)


LMTP = ProtocolMetrics("lmtp", "LMTP")
SMTP = ProtocolMetrics("smtp", "SMTP")
SUBMISSION = ProtocolMetrics("submission", "submission")

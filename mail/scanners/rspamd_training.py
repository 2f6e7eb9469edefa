"""Train Rspamd with messages."""

import asyncio
from collections.abc import Sequence

from mail import mime
from mail.inbound.incoming_message import IncomingMessage
from mail.scanners import rspamd
from mail.scanners.body_stream import ScanBody, body_for_scanner
from mail.scanners.circuit_breaker import ScannerUnavailable, breaker_of_scanner
from mail.scanners.rspamd import RspamdEndpoint
from models.errors import ServiceUnavailable
from models.observability import metrics
from models.runtime.environment import Environment

BREAKER_NAME = "rspamd_learn"
MAX_ATTACHED = 20  # attached messages used per message
UNENCODED = ("7bit", "8bit", "binary", "")  # transfer encodings that leave the bytes as they are
TRAINED_MESSAGES = metrics.counter(
    "merganser_spam_training_messages",
    "Messages sent to rspamd for training: learned, refused, given_up.",
    "kind",
    "result",
)


async def train_rspamd_and_return_metric_label(
    environment: Environment, body: ScanBody, *, is_spam: bool
) -> str:
    """Train Rspamd with a message; return the result as the metric labels it.

    Raises ScannerUnavailable.
    """
    options = environment.options
    if body.size > options.rspamd_max_size:
        return "refused"
    at = RspamdEndpoint(options.rspamd_learn_url, options.rspamd_password)
    breaker = breaker_of_scanner(environment.database, BREAKER_NAME, options.rspamd_learn_url)
    seconds = options.rspamd_timeout.total_seconds()
    is_accepted = await breaker.call_unless_open(
        environment, seconds, lambda: rspamd.try_train_with_message(at, body, is_spam=is_spam)
    )
    return "learned" if is_accepted else "refused"


async def train_rspamd_with_attached_or_whole_message(
    environment: Environment, incoming: "IncomingMessage", *, is_spam: bool
) -> ServiceUnavailable | None:
    """Train Rspamd with a message to a training address: its attached messages, or the message.

    Returns None, or the outage if Rspamd does not respond: the client must send the message again.
    """
    try:
        for body in await _bodies_of_attached_messages_or_of_message(incoming):
            TRAINED_MESSAGES.add(
                "spam" if is_spam else "ham",
                await train_rspamd_and_return_metric_label(environment, body, is_spam=is_spam),
            )
    except ScannerUnavailable:
        return ServiceUnavailable(
            "The spam filter does not respond.", component=rspamd.SCANNER_NAME
        )
    return None


async def _bodies_of_attached_messages_or_of_message(
    incoming: "IncomingMessage",
) -> Sequence[ScanBody]:
    """Return the attached messages, or the message if there is none."""
    attached = [
        part
        for part, _ in mime.walk_own_parts_with_parents(incoming.message.facts.structure)
        if part.content_type == "message/rfc822" and part.encoding in UNENCODED
    ]
    if not attached:
        return [body_for_scanner(incoming.raw_message, incoming.message.size)]
    source = incoming.raw_message
    raw = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
    slices = [raw[part.body_start : part.body_end] for part in attached[:MAX_ATTACHED]]
    return [body_for_scanner(segment, len(segment)) for segment in slices]

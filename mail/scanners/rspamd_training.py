"""Train Rspamd with messages."""

import asyncio
from collections.abc import Sequence

from mail import mime
from mail.inbound.incoming_message import Mail
from mail.scanners import rspamd
from mail.scanners.body_stream import Body, body_of
from mail.scanners.circuit_breaker import Down, breaker_of
from mail.scanners.rspamd import Rspamd
from models.errors import Unavailable
from models.observability import metrics
from models.runtime.environment import World

NAME = "rspamd_learn"
PARTS = 20  # attached messages used per message
PLAIN = ("7bit", "8bit", "binary", "")  # transfer encodings that leave the bytes as they are
LESSONS = metrics.counter(
    "merganser_lessons",
    "Messages for the spam filter to learn: learned, refused by it, given_up.",
    "kind",
    "result",
)


async def taught(world: World, body: Body, *, spam: bool) -> str:
    """Train Rspamd with a message; return the result as the metric labels it.

    Raises ScannerUnavailable.
    """
    options = world.options
    if body.size > options.rspamd_max:
        return "refused"
    at = Rspamd(options.rspamd_learn, options.rspamd_password)
    breaker = breaker_of(world.database, NAME, options.rspamd_learn)
    seconds = options.rspamd_timeout.total_seconds()
    known = await breaker.ask(world, seconds, lambda: rspamd.learn(at, body, spam=spam))
    return "learned" if known else "refused"


async def teach(world: World, mail: "Mail", *, spam: bool) -> object:
    """Train Rspamd with a message to a training address: its attached messages, or the message.

    Returns None, or Unavailable if Rspamd does not respond: the client must send the message again.
    """
    try:
        for body in await _bodies(mail):
            LESSONS.add("spam" if spam else "ham", await taught(world, body, spam=spam))
    except Down:
        return Unavailable("the spam filter does not answer", component=rspamd.NAME)
    return None


async def _bodies(mail: "Mail") -> Sequence[Body]:
    """Return the attached messages, or the message if there is none."""
    attached = [
        part
        for part, _ in mime.within(mail.letter.facts.structure)
        if part.content_type == "message/rfc822" and part.encoding in PLAIN
    ]
    if not attached:
        return [body_of(mail.source, mail.letter.size)]
    source = mail.source
    raw = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
    slices = [raw[part.body_start : part.body_end] for part in attached[:PARTS]]
    return [body_of(each, len(each)) for each in slices]

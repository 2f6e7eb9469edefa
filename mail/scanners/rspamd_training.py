"""Telling rspamd what a message was."""

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
PARTS = 20  # attached messages that are learned of one
PLAIN = ("7bit", "8bit", "binary", "")  # encodings that are the content itself
LESSONS = metrics.counter(
    "merganser_lessons",
    "Messages for the spam filter to learn: learned, refused by it, given_up.",
    "kind",
    "result",
)


async def taught(world: World, body: Body, *, spam: bool) -> str:
    """Teach it this; what came of it, as LESSONS has it. Down."""
    options = world.options
    if body.size > options.rspamd_max:
        return "refused"
    at = Rspamd(options.rspamd_learn, options.rspamd_password)
    breaker = breaker_of(world.database, NAME, options.rspamd_learn)
    seconds = options.rspamd_timeout.total_seconds()
    known = await breaker.ask(world, seconds, lambda: rspamd.learn(at, body, spam=spam))
    return "learned" if known else "refused"


async def teach(world: World, mail: "Mail", *, spam: bool) -> object:
    """Teach it what came to an address for that: the messages attached, or else the whole.

    None, or Unavailable where it does not answer: the message is to come again.
    """
    try:
        for body in await _bodies(mail):
            LESSONS.add("spam" if spam else "ham", await taught(world, body, spam=spam))
    except Down:
        return Unavailable("the spam filter does not answer", component=rspamd.NAME)
    return None


async def _bodies(mail: "Mail") -> Sequence[Body]:
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

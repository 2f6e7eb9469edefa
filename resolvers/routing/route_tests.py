"""A try of a way out, for an ADMIN: the conversation up to the recipient, and no message."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from mail.addresses.address_syntax import checked
from mail.outbound import route_test
from mail.outbound.route_test import Probed
from mail.routing.mx_hosts import route_of
from models.errors import Forbidden, Invalid, RateLimited
from resolvers.context import Context

AT_ONCE = 4  # of a process; each lasts a minute at most
_UNDER_WAY: set[object] = set()


@dataclass(frozen=True, slots=True)
class Tried:
    """What is tried: a way, a recipient, or a recipient by this way."""

    relay_host_id: int | None = None
    transport_id: int | None = None
    sender: str | None = None
    recipient: str | None = None


async def tried(ctx: Context, what: Tried, *, trial: bool = False) -> Probed:
    """Try it; Invalid, NotFound, RateLimited. A trial looks at what is said alone.

    Forbidden inside a unit of work: it would be held as long.
    """
    if what.relay_host_id is not None and what.transport_id is not None:
        raise Invalid("one of both", constraint="exclusive", path=["transport"])
    if what.relay_host_id is None and what.transport_id is None and not what.recipient:
        words = "name a recipient, a relay host or a transport"
        raise Invalid(words, constraint="required", path=["recipient"])
    sender = checked(what.sender, path="sender") if what.sender else ""
    recipient = checked(what.recipient, path="recipient") if what.recipient else None
    if ctx.writing:
        raise Forbidden("a try of a way out takes no part in a unit")
    if trial:
        return Probed(ok=True)
    with _one_of(AT_ONCE):
        return await route_test.probe(
            ctx.world,
            route_of(ctx.world),
            sender,
            recipient,
            what.relay_host_id,
            what.transport_id,
        )


@contextmanager
def _one_of(most: int) -> Generator[None]:
    """Take a place among the tries of this process; RateLimited."""
    if len(_UNDER_WAY) >= most:
        text = f"{most} ways are being tried: try again"
        raise RateLimited(text, retry_after=timedelta(seconds=30))
    place = object()
    _UNDER_WAY.add(place)
    try:
        yield
    finally:
        _UNDER_WAY.discard(place)

"""Test a route for an ADMIN: the SMTP dialog up to the recipient, without a message."""

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

AT_ONCE = 4  # per process; each takes at most a minute
_UNDER_WAY: set[object] = set()


@dataclass(frozen=True, slots=True)
class Tried:
    """The route to test, a recipient, or a recipient by this route."""

    relay_host_id: int | None = None
    transport_id: int | None = None
    sender: str | None = None
    recipient: str | None = None


async def tried(ctx: Context, what: Tried, *, trial: bool = False) -> Probed:
    """Test a route and return the result. A dry run validates the input only.

    Raises InvalidInput, NotFound, RateLimited if too many tests are running, and Forbidden
    inside a transaction, which would stay open as long.
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
    """Hold one of the test slots of this process. Raises RateLimited if none is free."""
    if len(_UNDER_WAY) >= most:
        text = f"{most} ways are being tried: try again"
        raise RateLimited(text, retry_after=timedelta(seconds=30))
    place = object()
    _UNDER_WAY.add(place)
    try:
        yield
    finally:
        _UNDER_WAY.discard(place)

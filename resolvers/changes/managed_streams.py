"""Streams of other users and of domains that the viewer manages."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import normal_domain
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import Forbidden, Invalid, NotFound
from models.events.journal import PLATFORM, ChangeKind, Event, Position
from models.users.roles import Role
from models.users.tables import User
from resolvers.access import administered, managed_users
from resolvers.changes.stream_reader import Sift
from resolvers.changes.visible_streams import Hear, hearing
from resolvers.context import Context
from resolvers.domains.loaders import visible_domains
from resolvers.users import listing as user_listing
from resolvers.users.listing import UserWhere

Kinds = frozenset[ChangeKind]

MOST = 99  # a position contains at most 100 streams
EVERY = frozenset(ChangeKind)
USERS = frozenset({ChangeKind.USER_CHANGED, ChangeKind.ADDRESS_CHANGED})
DOMAINS = frozenset({ChangeKind.DOMAIN_CHANGED})
RULES = frozenset(
    {ChangeKind.SENDER_RULE_CHANGED}
)  # in streams of domains; the platform's stream has all others


@dataclass(frozen=True, slots=True)
class Overheard:
    """Streams, with the kinds of changes that the viewer sees of each.

    The origin is removed, since session name and idempotency key belong to the user who made
    the change.
    """

    told: Mapping[int, Kinds]
    start: int | None = None  # must be in a position; None: any of the streams

    @property
    def streams(self) -> list[int]:
        """All stream ids."""
        return list(self.told)

    @property
    def open(self) -> Collection[int]:
        """All stream ids."""
        return self.told

    def knows(self, at: Position) -> bool:
        """True if the position contains one of the streams, or the required one."""
        return not self.told.keys().isdisjoint(at) if self.start is None else self.start in at

    def places(self, at: Position) -> dict[int, int]:
        """Return the positions in these streams; 0 for a stream that the position has not."""
        return {stream: at.get(stream, 0) for stream in self.told}

    def shown(self, event: Event) -> Event | None:
        """Return the event without its origin, or None if its kind is not visible."""
        seen = event.kind in self.told.get(event.stream_id, ())
        return replace(event, origin=None) if seen else None

    def stale(self, events: Iterable[Event]) -> bool:
        """Always true, since changes of the viewer's rights are recorded in other streams."""
        return True

    def ending(self, events: Iterable[Event]) -> bool:
        """Always true, since changes of the viewer's credentials are recorded in other streams."""
        return True


def account(key: int | None) -> Hear:
    """Return a selector of another user's stream; of the viewer's streams for None."""
    return hearing if key is None else partial(_account, key)


async def _account(key: int, ctx: Context) -> Overheard:
    """Return the stream of another user.

    Raises Forbidden if the viewer has no right to act as users, and NotFound if the viewer does
    not manage the user.
    """
    if not administered(ctx):
        raise Forbidden("this needs the right to act as the user", requires="LOGIN_AS")
    seen = select(col(User.id)).where(col(User.id) == key, managed_users(ctx))
    if not await ctx.read(seen):
        raise NotFound(str(key), path=["user"])
    return Overheard({key: EVERY})


def places(name: str | None, kinds: Kinds, *, path: Sequence[str]) -> Hear:
    """Return a selector of the streams of administered domains: the one with this name, or all."""
    return partial(_places, name, kinds, path)


async def _places(name: str | None, kinds: Kinds, path: Sequence[str], ctx: Context) -> Overheard:
    """Return the streams of administered domains, for an ADMIN with that of the platform.

    Raises NotFound, Forbidden if the viewer administers no domain, or InvalidInput if there are
    too many.
    """
    asked = select(col(Domain.id)).where(visible_domains(ctx)).order_by(col(Domain.id))
    if name is not None:
        asked = asked.where(col(Domain.name) == normal_domain(name))
    ids = [row.id for row in await ctx.read(asked.limit(MOST + 1))]
    if len(ids) > MOST:
        text = f"more than {MOST} domains are too many to follow at once: name one"
        raise Invalid(text, constraint="max", path=path)
    if name is not None and not ids:
        raise NotFound(name, path=path)
    if name is None and ctx.viewer.role.includes(Role.ADMIN):
        # it also has all changes of domains, and those of no domain
        return Overheard({PLATFORM: kinds, **dict.fromkeys(ids, kinds - DOMAINS)}, start=PLATFORM)
    if not ids:
        raise Forbidden("you are in charge of no domain", requires="a domain")
    return Overheard(dict.fromkeys(ids, kinds))


def among(where: UserWhere) -> Sift | None:
    """Return a filter of events about users that meet the conditions, or None for all users.

    Events about users that are deleted by then pass the filter.
    """
    where = replace(where, domain=None)  # the streams are selected by domain
    return None if where == UserWhere() else partial(_among, where)


async def _among(where: UserWhere, ctx: Context, events: Sequence[Event]) -> Sequence[Event]:
    addresses = {e.object_id for e in events if e.kind is ChangeKind.ADDRESS_CHANGED}
    owners = {}
    if addresses:
        asked = select(col(Address.id), col(Address.user_id)).where(col(Address.id).in_(addresses))
        owners = {row.id: row.user_id for row in await ctx.read(asked)}
    about = [owners.get(e.object_id, e.object_id) for e in events]
    unfit = await user_listing.unfit(ctx, where, set(about) - {None})
    return [event for event, key in zip(events, about, strict=True) if key not in unfit]

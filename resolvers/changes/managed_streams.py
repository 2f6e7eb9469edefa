"""Streams of the journal that are not the viewer's own: of accounts and domains they manage."""

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

MOST = 99  # domains that are followed at once: a position tells of no more streams than 100
EVERY = frozenset(ChangeKind)
USERS = frozenset({ChangeKind.USER_CHANGED, ChangeKind.ADDRESS_CHANGED})
DOMAINS = frozenset({ChangeKind.DOMAIN_CHANGED})
RULES = frozenset({ChangeKind.SENDER_RULE_CHANGED})  # of domains; PLATFORM tells of all others


@dataclass(frozen=True, slots=True)
class Overheard:
    """Streams, and the kinds of changes that are told of each.

    Who did it is not told: a session's name and an idempotency key are its owner's.
    """

    told: Mapping[int, Kinds]
    start: int | None = None  # what a position must name; None: any of the streams

    @property
    def streams(self) -> list[int]:
        """All of them."""
        return list(self.told)

    @property
    def open(self) -> Collection[int]:
        """All of them."""
        return self.told

    def knows(self, at: Position) -> bool:
        """Whether a position names one of the streams."""
        return not self.told.keys().isdisjoint(at) if self.start is None else self.start in at

    def places(self, at: Position) -> dict[int, int]:
        """The position in these streams; a domain that is new there is heard from its beginning."""
        return {stream: at.get(stream, 0) for stream in self.told}

    def shown(self, event: Event) -> Event | None:
        """The event without its origin; None where its kind is not told."""
        seen = event.kind in self.told.get(event.stream_id, ())
        return replace(event, origin=None) if seen else None

    def stale(self, events: Iterable[Event]) -> bool:
        """Always: what one is in charge of is told in other streams."""
        return True

    def ending(self, events: Iterable[Event]) -> bool:
        """Always: what happens to the own credential is told in the own stream."""
        return True


def account(key: int | None) -> Hear:
    """How an account's stream is heard: the own with all that is shared, another's alone."""
    return hearing if key is None else partial(_account, key)


async def _account(key: int, ctx: Context) -> Overheard:
    """Another's stream, for those to whom its mail is known as records."""
    if not administered(ctx):
        raise Forbidden("this needs the right to act as the user", requires="LOGIN_AS")
    seen = select(col(User.id)).where(col(User.id) == key, managed_users(ctx))
    if not await ctx.read(seen):
        raise NotFound(str(key), path=["user"])
    return Overheard({key: EVERY})


def places(name: str | None, kinds: Kinds, *, path: Sequence[str]) -> Hear:
    """How domains are heard that the viewer is in charge of: one of this name, or all."""
    return partial(_places, name, kinds, path)


async def _places(name: str | None, kinds: Kinds, path: Sequence[str], ctx: Context) -> Overheard:
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
        # all of domains is told there too, and what belongs to none
        return Overheard({PLATFORM: kinds, **dict.fromkeys(ids, kinds - DOMAINS)}, start=PLATFORM)
    if not ids:
        raise Forbidden("you are in charge of no domain", requires="a domain")
    return Overheard(dict.fromkeys(ids, kinds))


def among(where: UserWhere) -> Sift | None:
    """What picks the changes of accounts, and of their addresses, that a filter finds now.

    What is gone by then is told to whoever might have known it.
    """
    where = replace(where, domain=None)  # that was said by the streams
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

"""Streams of other users and of domains that the viewer manages."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import select
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import Forbidden, InvalidInput, NotFound
from models.events.event_types import (
    ADDRESS_EVENT_TYPES,
    DOMAIN_EVENT_TYPES,
    RESOURCE_EVENT_TYPES,
    SENDER_RULE_EVENT_TYPES,
    USER_EVENT_TYPES,
    EventType,
)
from models.events.journal import PLATFORM, JournalEvent, StreamPositions
from models.users.roles import Role
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import can_see_managed_mail_records, is_managed_user
from resolvers.changes.stream_reader import EventFilter
from resolvers.changes.visible_streams import SelectStreams, load_viewer_streams_and_note_sharing
from resolvers.context import Context
from resolvers.domains.loaders import (
    DomainIdOrName,
    find_administered_domain_by_ref,
    is_administered_domain,
    reference_text,
)
from resolvers.users import listing as user_listing
from resolvers.users.listing import UserConditions

EventTypes = frozenset[EventType]

MAX_FOLLOWED_DOMAINS = 99  # a position contains at most 100 streams
ALL_EVENT_TYPES = frozenset(EventType)
USER_AND_ADDRESS_EVENT_TYPES = USER_EVENT_TYPES | ADDRESS_EVENT_TYPES
DOMAIN_CHANGE_EVENT_TYPES = (
    USER_AND_ADDRESS_EVENT_TYPES
    | DOMAIN_EVENT_TYPES
    | SENDER_RULE_EVENT_TYPES
    | RESOURCE_EVENT_TYPES
)


@dataclass(frozen=True, slots=True)
class ManagedStreams:
    """Streams, with the event types that the viewer sees of each.

    The origin is removed, since session name and idempotency key belong to the user who made
    the change.
    """

    types_by_stream: Mapping[int, EventTypes]
    required_stream_id: int | None = None  # must be in a position; None: any of the streams

    @property
    def stream_ids(self) -> list[int]:
        """All stream ids."""
        return list(self.types_by_stream)

    @property
    def reported_stream_ids(self) -> Collection[int]:
        """All stream ids."""
        return self.types_by_stream

    def includes_position(self, position: StreamPositions) -> bool:
        """True if the position contains one of the streams, or the required one."""
        return (
            not self.types_by_stream.keys().isdisjoint(position)
            if self.required_stream_id is None
            else self.required_stream_id in position
        )

    def positions_in_streams(self, position: StreamPositions) -> dict[int, int]:
        """Return the positions in these streams; 0 for a stream that the position has not."""
        return {stream: position.get(stream, 0) for stream in self.types_by_stream}

    def visible_event_or_none(self, event: JournalEvent) -> JournalEvent | None:
        """Return the event without its origin, or None if its type is not visible."""
        is_visible = event.type in self.types_by_stream.get(event.stream_id, ())
        return replace(event, origin=None) if is_visible else None

    def needs_reload(self, events: Iterable[JournalEvent]) -> bool:
        """Always true, since changes of the viewer's rights are recorded in other streams."""
        return True

    def may_end_credential(self, events: Iterable[JournalEvent]) -> bool:
        """Always true, since changes of the viewer's credentials are recorded in other streams."""
        return True


def selector_of_user_stream(user_id: int | None) -> SelectStreams:
    """Return a selector of another user's stream; of the viewer's streams for None."""
    return (
        load_viewer_streams_and_note_sharing
        if user_id is None
        else partial(_require_managed_user_stream, user_id)
    )


async def _require_managed_user_stream(user_id: int, ctx: Context) -> ManagedStreams:
    """Return the stream of another user.

    Raises Forbidden if the viewer has no right to act as users, and NotFound if the viewer does
    not manage the user.
    """
    if not can_see_managed_mail_records(ctx):
        raise Forbidden("Requires the right to act as the user.", requires="IMPERSONATE")
    statement = select(col(User.id)).where(col(User.id) == user_id, is_managed_user(ctx))
    if not await ctx.read(statement):
        raise NotFound(str(user_id), path=["user"])
    return ManagedStreams({user_id: ALL_EVENT_TYPES})


async def load_administered_domain_id(
    ctx: Context, domain: DomainIdOrName, *, path: Sequence[str]
) -> int:
    """Return the ID of a domain. Raises NotFound if the viewer doesn't administer it."""
    row = await find_administered_domain_by_ref(ctx, domain)
    if row is None:
        raise NotFound(reference_text(domain), path=path)
    return int(row.id)


def selector_of_domain_streams(
    domain_id: int | None, event_types: EventTypes, *, path: Sequence[str]
) -> SelectStreams:
    """Return a selector of the streams of administered domains: the given one, or all."""
    return partial(_require_administered_domain_streams, domain_id, event_types, path)


async def _require_administered_domain_streams(
    domain_id: int | None, event_types: EventTypes, path: Sequence[str], ctx: Context
) -> ManagedStreams:
    """Return the streams of administered domains, for an ADMIN with that of the platform.

    Raises NotFound, Forbidden if the viewer administers no domain, or InvalidInput if there are
    too many.
    """
    statement = select(col(Domain.id)).where(is_administered_domain(ctx)).order_by(col(Domain.id))
    if domain_id is not None:
        statement = statement.where(col(Domain.id) == domain_id)
    ids = [row.id for row in await ctx.read(statement.limit(MAX_FOLLOWED_DOMAINS + 1))]
    if len(ids) > MAX_FOLLOWED_DOMAINS:
        message = f"You manage more than {MAX_FOLLOWED_DOMAINS} domains: name one domain."
        raise InvalidInput(message, constraint=ValidationConstraint.MAX, path=path)
    if domain_id is not None and not ids:
        raise NotFound(str(domain_id), path=path)
    if domain_id is None and ctx.viewer.role.includes(Role.ADMIN):
        # it also has all changes of domains, and those of no domain
        return ManagedStreams(
            {PLATFORM: event_types, **dict.fromkeys(ids, event_types - DOMAIN_EVENT_TYPES)},
            required_stream_id=PLATFORM,
        )
    if not ids:
        raise Forbidden("You don't manage a domain.", requires="a domain")
    return ManagedStreams(dict.fromkeys(ids, event_types))


def user_event_filter_ignoring_domain(conditions: UserConditions) -> EventFilter | None:
    """Return a filter of events about users that meet the conditions, or None for all users.

    Events about users that are deleted by then pass the filter.
    """
    conditions = replace(conditions, domain=None)  # the streams are selected by domain
    return None if conditions == UserConditions() else partial(_filter_user_events, conditions)


async def _filter_user_events(
    conditions: UserConditions, ctx: Context, events: Sequence[JournalEvent]
) -> Sequence[JournalEvent]:
    address_ids = {e.object_id for e in events if e.type in ADDRESS_EVENT_TYPES}
    owner_by_address = {}
    if address_ids:
        statement = select(col(Address.id), col(Address.user_id)).where(
            col(Address.id).in_(address_ids)
        )
        owner_by_address = {row.id: row.user_id for row in await ctx.read(statement)}
    user_ids = [owner_by_address.get(e.object_id, e.object_id) for e in events]
    excluded_ids = await user_listing.load_visible_ids_not_matching(
        ctx, conditions, set(user_ids) - {None}
    )
    return [
        event
        for event, user_id in zip(events, user_ids, strict=True)
        if user_id not in excluded_ids
    ]

"""Record changes of addresses in the journals of users and domains."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from models.events import journal
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry
from resolvers.context import Context


@dataclass
class AddressChangeDetails:
    """Details of an address change for the journal entries."""

    event_type: EventType = EventType.ADDRESS_UPDATED
    former_domain_ids: Mapping[int, int | None] = field(default_factory=dict)  # by address id
    # other streams that record the new main address of a user
    streams_by_user: Mapping[int, Collection[int]] = field(default_factory=dict)


async def journal_address_changes(
    ctx: Context, session: AsyncSession, addresses: Iterable[Any], details: AddressChangeDetails
) -> None:
    """Record changed addresses in the streams of their users and domains.

    The transaction must hold locks on these streams. A moved address is also recorded in the
    stream of its former domain, an address without user and domain in that of the platform.
    """
    address_ids_by_stream: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)
    for row in addresses:
        domain_ids = {row.domain_id, details.former_domain_ids.get(row.id, row.domain_id)} - {None}
        if row.user_id:
            address_ids_by_stream[row.user_id, False].append(row.id)
        elif not domain_ids:
            domain_ids = {PLATFORM}
        for domain_id in domain_ids:
            address_ids_by_stream[domain_id, bool(row.user_id)].append(row.id)
    entries: defaultdict[int, list[JournalEntry]] = defaultdict(list)
    duplicate_facts: dict[str, Any] = {"twice": True}  # the user's own stream has the same event
    for (stream, twice), ids in address_ids_by_stream.items():
        facts = duplicate_facts if twice else {}
        entries[stream] += ctx.journal_entries(details.event_type, ids, **facts)
    for user_id, streams in details.streams_by_user.items():
        changed: dict[str, Any] = {"changed": [["address"]]}
        entries[user_id] += ctx.journal_entries(EventType.USER_UPDATED, [user_id], **changed)
        for stream in sorted(streams):
            entries[stream] += ctx.journal_entries(
                EventType.USER_UPDATED, [user_id], **changed, **duplicate_facts
            )
    if entries:
        await journal.record_entries_in_streams_or_raise(session, entries, at=ctx.environment.now())

"""Record changes of addresses in the journals of users and domains."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from models.events import journal
from models.events.journal import PLATFORM, ChangeKind, Entry
from resolvers.context import Context


@dataclass
class News:
    """Details of an address change for the journal entries."""

    did: str | None = None
    former: Mapping[int, int | None] = field(default_factory=dict)  # by address id
    # other streams that record the new main address of a user
    users: Mapping[int, Collection[int]] = field(default_factory=dict)


async def tell(ctx: Context, session: AsyncSession, rows: Iterable[Any], news: News) -> None:
    """Record changed addresses in the streams of their users and domains.

    The transaction must hold locks on these streams. A moved address is also recorded in the
    stream of its former domain, an address without user and domain in that of the platform.
    """
    told: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)
    for row in rows:
        places = {row.domain_id, news.former.get(row.id, row.domain_id)} - {None}
        if row.user_id:
            told[row.user_id, False].append(row.id)
        elif not places:
            places = {PLATFORM}
        for place in places:
            told[place, bool(row.user_id)].append(row.id)
    entries: defaultdict[int, list[Entry]] = defaultdict(list)
    done: dict[str, Any] = {"did": news.did} if news.did else {}
    again: dict[str, Any] = {"twice": True}  # the user's own stream has the same event
    for (stream, twice), ids in told.items():
        more = {**done, **again} if twice else done
        entries[stream] += ctx.entries(ChangeKind.ADDRESS_CHANGED, ids, **more)
    for key, streams in news.users.items():
        changed: dict[str, Any] = {"changed": [["address"]]}
        entries[key] += ctx.entries(ChangeKind.USER_CHANGED, [key], **changed)
        for stream in sorted(streams):
            entries[stream] += ctx.entries(ChangeKind.USER_CHANGED, [key], **changed, **again)
    if entries:
        await journal.record_all(session, entries, at=ctx.world.now())

"""Telling of changed addresses: the journals of accounts and domains."""

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
    """What is to be told, beside the addresses that changed."""

    did: str | None = None
    former: Mapping[int, int | None] = field(default_factory=dict)  # domains they were in, by id
    # accounts with another main address, and the streams that tell of them beside their own
    users: Mapping[int, Collection[int]] = field(default_factory=dict)


async def tell(ctx: Context, session: AsyncSession, rows: Iterable[Any], news: News) -> None:
    """Write to the journals, which are held, what was done to these addresses.

    Each is told of by its owner and by its domain, and by the one it was in before.
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
    again: dict[str, Any] = {"twice": True}  # the account's own stream tells it too
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

"""Delete temporary addresses that have expired."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlmodel import col

from models.addresses.tables import Address
from models.domains.tables import Domain
from models.events.journal import PLATFORM, ChangeKind, Entry
from models.runtime.environment import Turn, World
from models.store.columns import Picked, table_of

KEPT = timedelta(days=30)  # no other user can get an address for this time
ROUND = 200  # addresses in one transaction


async def remove(world: World) -> int:
    """Delete addresses at the end of their reservation, in batches. Returns their number."""
    due = (col(Address.expires_at) <= world.now() - KEPT, ~col(Address.main))
    columns = (col(Address.id), col(Address.user_id), col(Address.domain_id))
    gone = 0
    while True:
        rows = await world.database.read(select(*columns).where(*due).limit(ROUND))
        streams = {key for row in rows for key in (row.user_id, row.domain_id) if key} | {PLATFORM}
        ids = [row.id for row in rows]
        removal = delete(Address).where(col(Address.id).in_(ids), *due).returning(*columns)

        def delete_batch(turn: Turn, removal: Any = removal) -> int:
            ended = turn.connection.execute(removal).all()
            _count_out(turn, ended)
            return len(ended)

        many = await world.apply(delete_batch, *sorted(streams)) if rows else 0
        gone += many
        if len(rows) < ROUND or not many:
            return gone


def _count_out(turn: Turn, rows: Sequence[Picked]) -> None:
    """Lower the address counts of the domains, and journal the deletions."""
    table = table_of(Domain)
    many = Counter(row.domain_id for row in rows if row.domain_id)
    lower = update(table).where(table.c.id == bindparam("key"))
    if many:
        turn.connection.execute(
            lower.values(address_count=table.c.address_count - bindparam("many")),
            [{"key": key, "many": number} for key, number in many.items()],
        )
    told: defaultdict[tuple[int, bool], list[int]] = defaultdict(list)
    for row in rows:
        told[row.user_id or row.domain_id or PLATFORM, False].append(row.id)
        if row.user_id and row.domain_id:
            told[row.domain_id, True].append(row.id)  # the user's stream has it too
    for (stream, twice), ids in sorted(told.items()):
        facts = {"did": "deleted", **({"twice": True} if twice else {})}
        turn.record(stream, Entry(ChangeKind.ADDRESS_CHANGED, ids, facts), at=turn.world.now())

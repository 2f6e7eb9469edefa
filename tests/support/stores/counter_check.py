"""What the store counts, counted again with SQL of our own."""

from typing import Any

from sqlalchemy import text

from mail.consistency import check_consistency
from models.events.journal import Change, ChangeKind
from models.runtime.environment import Environment
from models.store.columns import core_table
from tests.support.run_scope import CI

FOLDERS = """
SELECT b.id, b.total, b.unseen, b.size, count(m.id), count(CASE WHEN NOT m.seen THEN 1 END),
       coalesce(sum(m.size), 0), b.uid_next > coalesce(max(m.uid), 0),
       b.modseq >= coalesce(max(m.modseq), 0) AND b.modify_index >= b.modseq
FROM mailboxes b LEFT JOIN messages m ON m.mailbox_id = b.id GROUP BY b.id
"""
USERS = """
SELECT u.id, u.used, u.message_count, coalesce(sum(m.size), 0), count(m.id)
FROM users u LEFT JOIN messages m ON m.user_id = u.id AND m.mailbox_id IS NOT NULL GROUP BY u.id
"""
DOMAINS = """
SELECT d.id, d.user_count, d.address_count,
       (SELECT count(*) FROM users u WHERE u.domain_id = d.id),
       (SELECT count(*) FROM addresses a WHERE a.domain_id = d.id)
FROM domains d
"""


async def rows(world: Environment, sql: str, **given: Any) -> list[tuple[Any, ...]]:
    """The rows of a select, past all of our own code."""
    async with world.database.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(sql), given)]


async def recount(world: Environment) -> None:
    """Counters are what is there to count."""
    for _, total, unseen, size, *counted, uids, modseqs in await rows(world, FOLDERS):
        assert [total, unseen, size] == [int(one) for one in counted]
        assert (uids, modseqs) == (True, True)
    for _, used, many, *counted in await rows(world, USERS):
        assert [used, many] == [int(one) for one in counted]
    for _, users, addresses, *counted in await rows(world, DOMAINS):
        assert [users, addresses] == counted


async def examine(world: Environment) -> None:
    """Counters are what is there to count; in CI the verifier finds nothing wrong either."""
    await recount(world)
    if CI:
        assert (await check_consistency(world)).findings == []


async def journal(
    world: Environment, stream: int, after: int = 0
) -> list[tuple[ChangeKind, list[int]]]:
    """The rows of a stream: of which kind, and about what."""
    table = core_table(Change)
    asked = table.select().where(table.c.stream_id == stream, table.c.last > after)
    async with world.database.engine.connect() as connection:
        found = await connection.execute(asked.order_by(table.c.last))
        return [(row.kind, row.ids) for row in found]


async def reached(world: Environment, stream: int) -> int:
    """The newest number of a stream."""
    ((last,),) = await rows(world, "SELECT last FROM streams WHERE id = :id", id=stream)
    return int(last)

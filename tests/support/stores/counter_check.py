"""Checks of the stored counters, counted again by SQL."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mail.consistency import check_consistency
from models.events.event_types import EventType
from models.events.journal import Change
from models.runtime.environment import Environment
from models.store.columns import core_table
from tests.support.run_scope import CI

MAILBOX_COUNTS = """
SELECT b.id, b.message_count, b.unseen_count, b.size, count(m.id),
       count(CASE WHEN NOT m.seen THEN 1 END),
       coalesce(sum(m.size), 0), b.uid_next > coalesce(max(m.uid), 0),
       b.modseq >= coalesce(max(m.modseq), 0)
FROM mailboxes b LEFT JOIN messages m ON m.mailbox_id = b.id GROUP BY b.id
"""
USER_COUNTS = """
SELECT u.id, u.used, u.message_count,
       coalesce(sum(m.size + {message_data}), 0) + {user_data}
       + (SELECT coalesce(sum({filter_data}), 0) FROM filters f WHERE f.user_id = u.id)
       + (SELECT coalesce(sum({address_data}), 0) FROM addresses a WHERE a.user_id = u.id)
       + (SELECT coalesce(sum({annotation_data}), 0) FROM mailbox_annotations n
          JOIN mailboxes b ON b.id = n.mailbox_id WHERE b.user_id = u.id)
       + (SELECT coalesce(sum(k.size), 0) FROM key_value_entries k WHERE k.stream_id = u.id),
       count(m.id)
FROM users u LEFT JOIN messages m ON m.user_id = u.id AND m.mailbox_id IS NOT NULL GROUP BY u.id
"""
CUSTOM_DATA_COLUMNS = {
    "message_data": ("m.public_metadata",),
    "user_data": ("u.public_metadata", "u.private_metadata"),
    "filter_data": ("f.public_metadata",),
    "address_data": ("a.public_metadata", "a.private_metadata"),
    "annotation_data": ("n.key", "n.value"),
}
BYTE_LENGTH = {
    "sqlite": "coalesce(length(CAST({} AS BLOB)), 0)",
    "postgresql": "coalesce(octet_length(CAST({} AS TEXT)), 0)",
}
DOMAIN_COUNTS = """
SELECT d.id, d.user_count, d.address_count,
       (SELECT count(*) FROM users u WHERE u.domain_id = d.id),
       (SELECT count(*) FROM addresses a WHERE a.domain_id = d.id)
FROM domains d
"""
SORT_KEY_ROWS = "SELECT id, mailbox_id, sent_at, size FROM message_sort_keys ORDER BY id"
SORT_KEYS_OF_MESSAGES = (
    "SELECT id, mailbox_id, coalesce(date, received_at), size FROM messages ORDER BY id"
)
KEYWORD_ROWS = """
SELECT id, user_id, mailbox_id, listed_at, keyword FROM message_keywords
"""
KEYWORDS_OF_MESSAGES = {  # one row for each keyword of a message that is not deleted
    "sqlite": """
SELECT DISTINCT m.id, m.user_id, m.mailbox_id, m.listed_at, lower(w.value)
FROM messages m, json_each(m.keywords) w WHERE m.deleted_at IS NULL
""",
    "postgresql": """
SELECT DISTINCT m.id, m.user_id, m.mailbox_id, m.listed_at, lower(w.value COLLATE "C")
FROM messages m, jsonb_array_elements_text(m.keywords) w WHERE m.deleted_at IS NULL
""",
}

MAX_TARGET_LENGTH = 320  # of targets that have a row
TARGET_ROWS = "SELECT domain, local, address_id FROM forward_target_keys"
FORWARDS = {
    "sqlite": "SELECT a.id, t.value FROM addresses a, json_each(a.forward_to) t",
    "postgresql": "SELECT a.id, t FROM addresses a, jsonb_array_elements_text(a.forward_to) t",
}


async def select_rows(
    environment: Environment, sql: str, **parameters: Any
) -> list[tuple[Any, ...]]:
    """Select rows by SQL, without code of the product."""
    async with environment.database.engine.connect() as connection:
        return await _select_tuples(connection, sql, parameters)


async def _select_tuples(
    connection: AsyncConnection, sql: str, parameters: Mapping[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.execute(text(sql), parameters)]


async def assert_counters_match(environment: Environment) -> None:
    """Check that all counters equal the numbers of rows; and the keywords and sort keys."""
    dialect = environment.database.dialect
    length = BYTE_LENGTH[dialect]
    user_counts = USER_COUNTS.format(
        **{
            name: " + ".join(map(length.format, columns))
            for name, columns in CUSTOM_DATA_COLUMNS.items()
        }
    )
    async with environment.database.engine.connect() as connection:
        select_tuples = partial(_select_tuples, connection)
        for _, total, unseen, size, *counted, uids, modseqs in await select_tuples(MAILBOX_COUNTS):
            assert [total, unseen, size] == [int(number) for number in counted]
            assert (uids, modseqs) == (True, True)
        for _, used, message_count, *counted in await select_tuples(user_counts):
            assert [used, message_count] == [int(number) for number in counted]
        for _, users, addresses, *counted in await select_tuples(DOMAIN_COUNTS):
            assert [users, addresses] == counted
        keyword_rows = await select_tuples(KEYWORD_ROWS)
        assert sorted(keyword_rows) == sorted(await select_tuples(KEYWORDS_OF_MESSAGES[dialect]))
        assert await select_tuples(SORT_KEY_ROWS) == await select_tuples(SORT_KEYS_OF_MESSAGES)
        targets = forward_target_keys(await select_tuples(FORWARDS[dialect]))
        assert set(await select_tuples(TARGET_ROWS)) == targets


def forward_target_keys(targets: Iterable[tuple[int, str]]) -> set[tuple[str, str, int]]:
    """Return the row of each normal form of a target."""
    keys = set()
    for address_id, target in targets:
        local, at, domain = target.lower().partition("@")
        if at and len(target) <= MAX_TARGET_LENGTH and "://" not in target:
            keys.add((domain, local.partition("+")[0].replace(".", ""), address_id))
    return keys


async def assert_forward_target_keys_match(environment: Environment) -> None:
    """Check that the table has one row for each normal form of a target."""
    targets = await select_rows(environment, FORWARDS[environment.database.dialect])
    assert set(await select_rows(environment, TARGET_ROWS)) == forward_target_keys(targets)


async def assert_store_consistent(environment: Environment) -> None:
    """Check all counters; in CI also that the consistency check has no findings."""
    await assert_counters_match(environment)
    if CI:
        findings = (await check_consistency(environment)).findings
        assert not findings, findings


async def load_journal_entries(
    environment: Environment, stream_id: int, after_position: int = 0
) -> list[tuple[EventType, list[int]]]:
    """Read the entries of a stream: their kind and ids."""
    table = core_table(Change)
    statement = table.select().where(table.c.stream_id == stream_id, table.c.last > after_position)
    async with environment.database.engine.connect() as connection:
        change_rows = await connection.execute(statement.order_by(table.c.last))
        return [(row.type, row.ids) for row in change_rows]


async def load_stream_position(environment: Environment, stream_id: int) -> int:
    """Read the last position of a stream."""
    ((position,),) = await select_rows(
        environment, "SELECT last FROM streams WHERE id = :id", id=stream_id
    )
    return int(position)

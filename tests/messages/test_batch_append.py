"""Test that messages stored as a batch have the same rows as messages stored one by one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.recipients import address_resolution
from mail.storage import message_insert, received_messages
from mail.storage.message_insert import InsertedMessage
from mail.storage.quota import InsertKind
from models.errors import NotFound, OverQuota
from models.events.event_types import EventType
from models.events.journal import Change
from models.messages.tables import Message, Thread, ThreadKey
from models.runtime.environment import CommittedOptions, Environment
from models.store.prepared_statements import MAX_ROWS_PER_INSERT
from models.users.tables import User
from tests.conftest import GraphQLClient, deliver_to, raw_message

pytestmark = pytest.mark.usefixtures("verify_consistency")


def message_with_references(name: str, *parents: str, body: str = "Hi.") -> bytes:
    headers = (
        {"References": " ".join(f"<{parent}@example.com>" for parent in parents)} if parents else {}
    )
    return raw_message("Pond", body=body, **{"Message-ID": f"<{name}@example.com>", **headers})


async def insert_batch(
    ada: GraphQLClient,
    raws: Sequence[bytes],
    kind: InsertKind = InsertKind.ADDED_BY_USER,
    **extra: Any,
) -> list[InsertedMessage]:
    """Store the messages together in INBOX, or in the mailbox given by `mailbox_id`."""
    recipient = await address_resolution.load_recipient_below_limits(ada.environment, ada.address)
    messages = [await received_messages.parse_storable_message(raw) for raw in raws]
    placement = message_insert.MessagePlacement(
        ada.user.id, extra.pop("mailbox_id", recipient.mailbox_id), ada.environment.now(), **extra
    )

    def insert_all(transaction: Any, stored_blobs: Sequence[Any]) -> list[InsertedMessage]:
        items = [
            message_insert.InsertItem(message, blobs, placement)
            for message, blobs in zip(messages, stored_blobs, strict=True)
        ]
        try:
            return message_insert.insert_messages_and_take_quota(transaction, items, kind=kind)
        except OverQuota:  # The transaction continues and keeps earlier writes.
            return []

    return await received_messages.store_all_blobs_and_run_transaction(
        ada.environment, recipient.tenant_id, messages, insert_all, ada.user.id
    )


async def load_message_rows(environment: Environment) -> list[Any]:
    messages = Message.__table__  # type: ignore[attr-defined]
    return list(await environment.database.read(select(messages).order_by(col(Message.uid))))


async def test_batch_gets_consecutive_uids_and_one_journal_entry(
    ada: GraphQLClient, environment: Environment
) -> None:
    message_count = 2 * MAX_ROWS_PER_INSERT + 5  # more than one statement inserts
    raws = [message_with_references(str(nth), body=f"Number {nth}") for nth in range(message_count)]
    inserted = await insert_batch(ada, raws, keywords=["$Told"])
    message_rows = await load_message_rows(environment)
    assert [row.id for row in message_rows] == [item.message_id for item in inserted]
    assert (
        [row.uid for row in message_rows]
        == [item.uid for item in inserted]
        == list(range(1, message_count + 1))
    )
    assert [row.message_id for row in message_rows] == [
        f"<{nth}@example.com>" for nth in range(message_count)
    ]
    assert {row.modseq for row in message_rows} == {inserted[0].modseq}
    changes = await environment.database.read(
        select(Change.__table__).where(  # type: ignore[attr-defined]
            col(Change.stream_id) == ada.user.id, col(Change.type) == EventType.MESSAGE_ADDED
        )
    )
    assert [(item.ids, item.facts["uid"], item.last) for item in changes] == [
        ([row.id for row in message_rows], list(range(1, message_count + 1)), inserted[0].modseq)
    ]
    assert changes[0].facts["flags"] == [["$Told"]] * message_count


async def test_identical_messages_share_their_blobs(ada: GraphQLClient) -> None:
    first, different, duplicate = await insert_batch(
        ada,
        [message_with_references("a"), message_with_references("b"), message_with_references("a")],
    )
    assert first.layout_blob_id == duplicate.layout_blob_id != different.layout_blob_id


async def test_batch_message_joins_thread_of_batch_or_stored_message(
    ada: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, message_with_references("root"))
    await insert_batch(
        ada,
        [
            message_with_references("b", "a"),
            message_with_references("c", "b"),
            message_with_references("d", "root"),
            message_with_references("e"),
        ],
    )
    first, b, c, d, e = [row.thread_id for row in await load_message_rows(environment)]
    assert b == c
    assert d == first
    assert len({first, b, e}) == 3
    await insert_batch(ada, [message_with_references("f", "e"), message_with_references("g", "c")])
    assert [row.thread_id for row in await load_message_rows(environment)][5:] == [e, b]


async def test_message_that_merges_threads_is_found_by_later_ones(
    ada: GraphQLClient, environment: Environment
) -> None:
    """The merged threads are stored, or begin in the same batch."""
    for raw in (message_with_references("one"), message_with_references("two")):
        await deliver_to(ada, raw)
    batch = [
        message_with_references("three"),
        message_with_references("x", "one", "two"),
        message_with_references("y", "two"),
        message_with_references("z", "y", "three"),
    ]
    await insert_batch(ada, batch)
    assert len({row.thread_id for row in await load_message_rows(environment)}) == 1
    threads = await environment.database.read(select(col(Thread.id)))
    assert len(threads) == 1
    thread_keys = await environment.database.read(select(col(ThreadKey.thread_id)))
    assert {row.thread_id for row in thread_keys} == {threads[0].id}


@pytest.mark.parametrize("parents", [(), ("one", "two")])
async def test_batch_over_quota_stores_nothing(
    ada: GraphQLClient, environment: Environment, parents: Sequence[str]
) -> None:
    """The batch is written with one statement, or message by message if it merges threads."""
    for parent in ("one", "two"):
        await deliver_to(ada, message_with_references(parent))
    rows_before = await load_message_rows(environment)
    raws = [
        message_with_references("a"),
        message_with_references("b", *parents),
        message_with_references("c"),
    ]
    quota = sum(row.size for row in rows_before) + sum(map(len, raws)) - 1
    environment.use_options_unless_outdated(
        CommittedOptions(replace(environment.options, users_default_quota=quota), 1)
    )
    assert await insert_batch(ada, raws) == []
    assert await load_message_rows(environment) == rows_before
    assert len(await insert_batch(ada, raws[:2])) == 2
    # Restore the quota that the domain's counters assume.
    environment.use_options_unless_outdated(CommittedOptions(environment.initial_options, 2))


async def test_batch_into_missing_mailbox_is_refused(
    ada: GraphQLClient, environment: Environment
) -> None:
    with pytest.raises(NotFound):
        await insert_batch(
            ada, [message_with_references("a"), message_with_references("b")], mailbox_id=1
        )
    assert await load_message_rows(environment) == []


async def test_batch_counts_towards_hourly_receive_limit(
    ada: GraphQLClient, environment: Environment
) -> None:
    """The limit event is written although the limit is crossed within the batch."""
    async with environment.database.write_session() as session:
        limit_update = update(User).where(col(User.id) == ada.user.id).values(received_per_hour=4)
        await (await session.connection()).execute(limit_update)
    limit_events = select(Change.__table__).where(col(Change.type) == EventType.LIMIT_REACHED)  # type: ignore[attr-defined]
    await insert_batch(
        ada, [message_with_references("a"), message_with_references("b")], InsertKind.RECEIVED
    )
    assert await environment.database.read(limit_events) == []
    await insert_batch(
        ada,
        [message_with_references("c"), message_with_references("d"), message_with_references("e")],
        InsertKind.RECEIVED,
    )
    (event,) = await environment.database.read(limit_events)
    assert (event.facts["limitKind"], event.facts["used"], event.facts["limit"]) == (
        "RECEIVED",
        5,
        4,
    )
    (user,) = await environment.database.read(select(col(User.received)))
    assert user.received == 5


async def test_batch_statement_count_is_independent_of_size(
    ada: GraphQLClient, statements: list[Any]
) -> None:
    await insert_batch(ada, [message_with_references("warm")])
    del statements[:]
    await insert_batch(ada, [message_with_references("one")])
    expected = len(statements)
    del statements[:]
    await insert_batch(
        ada,
        [message_with_references(str(nth), body=str(nth)) for nth in range(MAX_ROWS_PER_INSERT)],
    )
    assert len(statements) == expected

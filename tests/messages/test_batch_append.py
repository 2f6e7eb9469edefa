"""Messages of one account that are stored together lie as those stored one after the other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.recipients import address_resolution
from mail.storage import message_insert, received_messages
from mail.storage.message_insert import InsertedMessage, InsertKind
from models.errors import NotFound, OverQuota
from models.events.journal import Change, ChangeKind
from models.messages.tables import Message, Thread, ThreadKey
from models.runtime.environment import CommittedOptions, Environment
from models.store.prepared_statements import MAX_ROWS_PER_INSERT
from models.users.tables import User
from tests.conftest import Client, raw_message, receive

pytestmark = pytest.mark.usefixtures("examined")


def mail(name: str, *parents: str, body: str = "Hi.") -> bytes:
    told = {"References": " ".join(f"<{one}@example.com>" for one in parents)} if parents else {}
    return raw_message("Pond", body=body, **{"Message-ID": f"<{name}@example.com>", **told})


async def put(
    ada: Client, raws: Sequence[bytes], way: InsertKind = InsertKind.ADDED_BY_USER, **more: Any
) -> list[InsertedMessage]:
    """Store these together in INBOX, or in the folder that is named."""
    to = await address_resolution.load_recipient(ada.world, ada.address)
    letters = [await received_messages.read_message(raw) for raw in raws]
    spot = message_insert.MessagePlacement(
        ada.user.id, more.pop("mailbox_id", to.mailbox_id), ada.world.now(), **more
    )

    def unit(turn: Any, kept: Sequence[Any]) -> list[InsertedMessage]:
        items = [
            message_insert.InsertItem(letter, safe, spot)
            for letter, safe in zip(letters, kept, strict=True)
        ]
        try:
            return message_insert.insert_messages(turn, items, kind=way)
        except OverQuota:  # the unit goes on: what is written by now stays
            return []

    return await received_messages.apply_with_all_blobs(
        ada.world, to.tenant_id, letters, unit, ada.user.id
    )


async def rows(world: Environment) -> list[Any]:
    return list(await world.database.read(select(Message.__table__).order_by(col(Message.uid))))  # type: ignore[attr-defined]


async def test_uids_counters_and_one_entry_of_the_journal(ada: Client, world: Environment) -> None:
    many = 2 * MAX_ROWS_PER_INSERT + 5  # more than one statement takes
    raws = [mail(str(nth), body=f"Number {nth}") for nth in range(many)]
    placed = await put(ada, raws, keywords=["$Told"])
    found = await rows(world)
    assert [row.id for row in found] == [one.message_id for one in placed]
    assert [row.uid for row in found] == [one.uid for one in placed] == list(range(1, many + 1))
    assert [row.message_id for row in found] == [f"<{nth}@example.com>" for nth in range(many)]
    assert {row.modseq for row in found} == {placed[0].modseq}
    said = await world.database.read(
        select(Change.__table__).where(  # type: ignore[attr-defined]
            col(Change.stream_id) == ada.user.id, col(Change.kind) == ChangeKind.MESSAGE_ADDED
        )
    )
    assert [(one.ids, one.facts["uid"], one.last) for one in said] == [
        ([row.id for row in found], list(range(1, many + 1)), placed[0].modseq)
    ]
    assert said[0].facts["flags"] == [["$Told"]] * many


async def test_twins_share_their_bytes(ada: Client) -> None:
    one, other, third = await put(ada, [mail("a"), mail("b"), mail("a")])
    assert one.layout_blob_id == third.layout_blob_id != other.layout_blob_id


async def test_a_conversation_of_some_is_found_by_the_others(
    ada: Client, world: Environment
) -> None:
    await receive(ada, mail("root"))
    await put(ada, [mail("b", "a"), mail("c", "b"), mail("d", "root"), mail("e")])
    first, b, c, d, e = [row.thread_id for row in await rows(world)]
    assert b == c
    assert d == first
    assert len({first, b, e}) == 3
    await put(ada, [mail("f", "e"), mail("g", "c")])
    assert [row.thread_id for row in await rows(world)][5:] == [e, b]


async def test_what_joins_conversations_is_found_by_those_behind_it(
    ada: Client, world: Environment
) -> None:
    """Of two that are there already, and of two that begin among these."""
    for raw in (mail("one"), mail("two")):
        await receive(ada, raw)
    together = [mail("three"), mail("x", "one", "two"), mail("y", "two"), mail("z", "y", "three")]
    await put(ada, together)
    assert len({row.thread_id for row in await rows(world)}) == 1
    left = await world.database.read(select(col(Thread.id)))
    assert len(left) == 1
    led = await world.database.read(select(col(ThreadKey.thread_id)))
    assert {row.thread_id for row in led} == {left[0].id}


@pytest.mark.parametrize("parents", [(), ("one", "two")])
async def test_where_all_have_no_room_none_goes_in(
    ada: Client, world: Environment, parents: Sequence[str]
) -> None:
    """Whether or not they are stored one after the other."""
    for parent in ("one", "two"):
        await receive(ada, mail(parent))
    there = await rows(world)
    raws = [mail("a"), mail("b", *parents), mail("c")]
    room = sum(row.size for row in there) + sum(map(len, raws)) - 1
    world.apply_options(CommittedOptions(replace(world.options, default_quota=room), 1))
    assert await put(ada, raws) == []
    assert await rows(world) == there
    assert len(await put(ada, raws[:2])) == 2
    world.apply_options(CommittedOptions(world.initial_options, 2))  # as its domain has it counted


async def test_a_folder_that_is_gone_takes_none(ada: Client, world: Environment) -> None:
    with pytest.raises(NotFound):
        await put(ada, [mail("a"), mail("b")], mailbox_id=1)
    assert await rows(world) == []


async def test_what_comes_together_is_counted_in_the_hour(ada: Client, world: Environment) -> None:
    """The mark is told of where it is among those that come."""
    async with world.database.write_session() as session:
        most = update(User).where(col(User.id) == ada.user.id).values(received_max=4)
        await (await session.connection()).execute(most)
    asked = select(Change.__table__).where(col(Change.kind) == ChangeKind.LIMIT_REACHED)  # type: ignore[attr-defined]
    await put(ada, [mail("a"), mail("b")], InsertKind.RECEIVED)
    assert await world.database.read(asked) == []
    await put(ada, [mail("c"), mail("d"), mail("e")], InsertKind.RECEIVED)
    (told,) = await world.database.read(asked)
    assert (told.facts["limit"], told.facts["used"], told.facts["allowed"]) == ("RECEIVED", 5, 4)
    (user,) = await world.database.read(select(col(User.received)))
    assert user.received == 5


async def test_many_take_as_many_statements_as_one(ada: Client, statements: list[Any]) -> None:
    await put(ada, [mail("warm")])
    del statements[:]
    await put(ada, [mail("one")])
    alone = len(statements)
    del statements[:]
    await put(ada, [mail(str(nth), body=str(nth)) for nth in range(MAX_ROWS_PER_INSERT)])
    assert len(statements) == alone

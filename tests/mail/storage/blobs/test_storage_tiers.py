"""Bodies of messages between two stores."""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.app import create_app
from mail.consistency import check_consistency
from mail.storage.blobs.garbage_collector import collect_garbage
from mail.storage.blobs.object_stores import FolderStore
from mail.storage.blobs.tiered_store import TieredStore
from models.events.journal import ChangeKind
from models.files.blobs import StorageTier
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.admin import tasks
from resolvers.messages.bulk import storage_tiers
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.users.selection import UserSelector
from tests.conftest import Client, Clock, context, make_client, raw_message, receive
from tests.support.operations.bulk_operations import call, inbox, of
from tests.support.stores.counter_check import examine, journal, reached, rows

ALL: dict[str, Any] = {"all": True}
TIERS = """query ($filter: MessageFilter) { messages(filter: $filter, orderBy: RECEIVED_ASC) {
    totalCount nodes { subject tier text } } }"""


@dataclass(frozen=True)
class House:
    """A world with a hot and a cold store, a user of it, and who keeps it."""

    world: Environment
    post: Client
    boss: Client
    cold: Path


@pytest.fixture
async def house(world: Environment, tmp_path: Path, clock: Clock) -> AsyncIterator[House]:
    cold = FolderStore(tmp_path / "cold")
    world = replace(world, object_store=TieredStore(world.object_store, cold))
    transport = httpx.ASGITransport(app=create_app(world, spool_folder=tmp_path))
    http = httpx.AsyncClient(transport=transport, base_url="http://tiers")
    post = await make_client(world, http, "ada")
    for subject in ("a", "b"):
        await receive(post, raw_message(subject))
        clock.tick(seconds=1)
    await receive(post, long("long"))
    boss = await make_client(world, http, "boss", role=Role.ADMIN)
    yield House(world, post, boss, tmp_path / "cold")
    await examine(world)
    await cold.close()


def long(subject: str) -> bytes:
    """A message that is too long for its row, however it is compressed."""
    dice = random.Random(7)  # noqa: S311 - the same each time
    return raw_message(subject, body="\r\n".join(dice.randbytes(36).hex() for _ in range(10_000)))


async def move(house: House, select: dict[str, Any], **more: Any) -> Any:
    given = {"select": {**select, "users": of(house.post)}, **more}
    return await call(house.boss, "messageTierMove", **given)


async def lying(house: House, **filter_: Any) -> list[tuple[str, str]]:
    found = (await house.post(TIERS, filter=filter_ or None))["messages"]
    assert found["totalCount"] == len(found["nodes"])
    assert all(node["text"] for node in found["nodes"])
    return [(node["subject"], node["tier"]) for node in found["nodes"]]


def objects(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


async def test_bodies_move_to_the_cold_store_and_back(house: House, tmp_path: Path) -> None:
    hot = objects(tmp_path / "blobs")
    last = await reached(house.world, house.post.user.id)
    answer = await move(house, inbox("2:*"))
    assert (answer["errors"], answer["movedCount"], answer["task"]) == ([], 2, None)
    assert await lying(house) == [("a", "HOT"), ("b", "COLD"), ("long", "COLD")]
    assert objects(house.cold) == 2
    assert (await move(house, inbox("2:*")))["movedCount"] == 0
    assert await lying(house, tier="COLD") == [("b", "COLD"), ("long", "COLD")]
    assert await lying(house, tier="HOT", subject="a") == [("a", "HOT")]
    back = await move(house, {"filter": {"tier": "COLD"}}, reverse=True)
    assert (back["errors"], back["movedCount"]) == ([], 2)
    assert {tier for _, tier in await lying(house)} == {"HOT"}
    assert await journal(house.world, house.post.user.id, last) == []
    inline = await rows(house.world, "SELECT count(*) FROM blobs WHERE data IS NULL")
    assert inline == [(hot,)]


async def test_the_collector_removes_what_was_left_behind(
    house: House, tmp_path: Path, clock: Clock
) -> None:
    await move(house, ALL)
    assert objects(tmp_path / "blobs") == 1
    clock.tick(days=800_000 // 1_000)  # past the files, which have the date of today
    await collect_garbage(house.world, house.world.object_store, grace_period=timedelta(0))
    assert (objects(tmp_path / "blobs"), objects(house.cold)) == (0, 3)
    assert (await check_consistency(house.world)).findings == []
    assert {tier for _, tier in await lying(house)} == {"COLD"}


async def test_what_messages_share_moves_once(house: House) -> None:
    await call(house.post, "messageCopy", select=inbox("3"), to={"path": "Sent"})
    answer = await move(house, inbox("3"))
    assert answer["movedCount"] == 1
    assert objects(house.cold) == 1
    assert await lying(house, subject="long") == [("long", "COLD")] * 2
    assert (await move(house, {"mailbox": {"path": "Sent"}}))["movedCount"] == 0
    await receive(house.post, long("long"), sender="dave@example.com")
    assert await lying(house, subject="long") == [("long", "COLD")] * 3


async def test_a_crash_between_the_stores_loses_nothing(house: House) -> None:
    def crash(place: str) -> None:
        if place == "tier":
            raise KeyboardInterrupt

    ailing = replace(house.world, reach_fault_point=crash)
    boss = replace(house.boss, world=ailing)
    select = MessageSelector(
        conditions=MessageConditions(), users=UserSelector(ids=(house.post.user.id,))
    )
    with pytest.raises(KeyboardInterrupt):
        await storage_tiers.move_to_tier(context(boss), select, StorageTier.COLD)
    assert objects(house.cold) == 3
    assert {tier for _, tier in await lying(house)} == {"HOT"}
    assert (await check_consistency(house.world)).findings == []
    assert (await move(house, ALL))["movedCount"] == 3


async def test_many_are_a_task(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_tiers, "MAX_INLINE_MESSAGES", 2)
    monkeypatch.setattr(storage_tiers, "MESSAGES_PER_STEP", 1)
    answer = await move(house, ALL)
    assert (answer["movedCount"], answer["task"]["total"]) == (0, 3)
    assert answer["task"]["kind"] == "MESSAGE_TIER_MOVE"
    assert objects(house.cold) == 0
    await call(house.post, "messageDelete", select=inbox("1"), permanent=True)
    assert await tasks.run_next_task(house.world)
    assert await lying(house) == [("b", "COLD"), ("long", "COLD")]


async def test_a_trial_moves_nothing(house: House) -> None:
    answer = await move(house, ALL, options={"validateOnly": True})
    assert (answer["errors"], answer["movedCount"]) == ([], 3)
    assert objects(house.cold) == 0


async def test_only_an_administrator_moves_and_only_what_is_there(house: House) -> None:
    document = """mutation ($input: MessageTierMoveInput!) { messageTierMove(input: $input) {
        movedCount errors { code path index } } }"""
    refused = await house.post.raw(document, input={"select": ALL})
    assert refused["data"]["messageTierMove"]["errors"][0]["code"] == "FORBIDDEN"
    answer = await move(house, {"ids": ["msg_00000000000000000000000000"]})
    assert answer["errors"][0]["code"] in ("NOT_FOUND", "VALIDATION")
    assert objects(house.cold) == 0


async def test_without_a_second_store_nothing_moves(ada: Client, root: Client) -> None:
    await receive(ada)
    answer = await call(root, "messageTierMove", select={**ALL, "users": of(ada)})
    assert [e["code"] for e in answer["errors"]] == ["UNAVAILABLE"]
    assert (await ada("{ messages { nodes { tier } } }"))["messages"]["nodes"] == [{"tier": "HOT"}]


async def test_a_damaged_body_stays_where_it_is(house: House, tmp_path: Path) -> None:
    (path,) = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    await move(house, ALL)
    assert objects(house.cold) == 2
    path.write_bytes(whole)
    assert (await move(house, ALL))["movedCount"] == 1
    assert {tier for _, tier in await lying(house)} == {"COLD"}
    kinds = {kind for kind, _ in await journal(house.world, house.post.user.id)}
    assert ChangeKind.MESSAGE_UPDATED not in kinds

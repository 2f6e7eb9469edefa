"""Moving message bodies between the hot and the cold object store."""

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
from models.events.event_types import EventType
from models.files.blobs import StorageTier
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.admin import tasks
from resolvers.messages.bulk import storage_tiers
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.users.selection import UserSelector
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    client_context,
    deliver_to,
    make_client,
    raw_message,
)
from tests.support.operations.bulk_operations import (
    inbox_selection,
    run_message_mutation,
    user_selection,
)
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_journal_entries,
    load_stream_position,
    select_rows,
)

ALL_MESSAGES: dict[str, Any] = {"all": True}
TIERS_QUERY = """query ($filter: MessageFilter) {
  messages(filter: $filter, orderBy: RECEIVED_AT_ASC) {
    totalCount nodes { subject tier text } } }"""


@dataclass(frozen=True)
class TieredEnvironment:
    """An environment with a hot and a cold store, a user and an administrator."""

    environment: Environment
    user_client: GraphQLClient
    admin_client: GraphQLClient
    cold_folder: Path


@pytest.fixture
async def tiered_environment(
    environment: Environment, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[TieredEnvironment]:
    cold_store = FolderStore(tmp_path / "cold")
    environment = replace(
        environment, object_store=TieredStore(environment.object_store, cold_store)
    )
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=tmp_path))
    http = httpx.AsyncClient(transport=transport, base_url="http://tiers")
    user_client = await make_client(environment, http, "ada")
    for subject in ("a", "b"):
        await deliver_to(user_client, raw_message(subject))
        clock.tick(seconds=1)
    await deliver_to(user_client, long_message("long"))
    admin_client = await make_client(environment, http, "boss", role=Role.ADMIN)
    yield TieredEnvironment(environment, user_client, admin_client, tmp_path / "cold")
    await assert_store_consistent(environment)
    await cold_store.close()


def long_message(subject: str) -> bytes:
    """Return a message that is too long for its row even if compressed."""
    rng = random.Random(7)  # noqa: S311 - reproducible
    return raw_message(subject, body="\r\n".join(rng.randbytes(36).hex() for _ in range(10_000)))


async def move_messages(
    tiered_environment: TieredEnvironment, select: dict[str, Any], **options: Any
) -> Any:
    move_input = {
        "select": {**select, "users": user_selection(tiered_environment.user_client)},
        **options,
    }
    return await run_message_mutation(
        tiered_environment.admin_client, "messageTierMove", **move_input
    )


async def subjects_with_tier(
    tiered_environment: TieredEnvironment, **filter_: Any
) -> list[tuple[str, str]]:
    messages = (await tiered_environment.user_client(TIERS_QUERY, filter=filter_ or None))[
        "messages"
    ]
    assert messages["totalCount"] == len(messages["nodes"])
    assert all(node["text"] for node in messages["nodes"])
    return [(node["subject"], node["tier"]) for node in messages["nodes"]]


def count_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


async def test_messages_move_to_cold_store_and_back(
    tiered_environment: TieredEnvironment, tmp_path: Path
) -> None:
    hot_count = count_files(tmp_path / "blobs")
    last_position = await load_stream_position(
        tiered_environment.environment, tiered_environment.user_client.user.id
    )
    payload = await move_messages(tiered_environment, inbox_selection("2:*"))
    assert (payload["errors"], payload["movedCount"], payload["task"]) == ([], 2, None)
    assert await subjects_with_tier(tiered_environment) == [
        ("a", "HOT"),
        ("b", "COLD"),
        ("long", "COLD"),
    ]
    assert count_files(tiered_environment.cold_folder) == 2
    assert (await move_messages(tiered_environment, inbox_selection("2:*")))["movedCount"] == 0
    assert await subjects_with_tier(tiered_environment, tier="COLD") == [
        ("b", "COLD"),
        ("long", "COLD"),
    ]
    assert await subjects_with_tier(tiered_environment, tier="HOT", subject="a") == [("a", "HOT")]
    payload_back = await move_messages(
        tiered_environment, {"filter": {"tier": "COLD"}}, reverse=True
    )
    assert (payload_back["errors"], payload_back["movedCount"]) == ([], 2)
    assert {tier for _, tier in await subjects_with_tier(tiered_environment)} == {"HOT"}
    assert (
        await load_journal_entries(
            tiered_environment.environment, tiered_environment.user_client.user.id, last_position
        )
        == []
    )
    object_count = await select_rows(
        tiered_environment.environment, "SELECT count(*) FROM blobs WHERE data IS NULL"
    )
    assert object_count == [(hot_count,)]


async def test_garbage_collector_removes_moved_objects(
    tiered_environment: TieredEnvironment, tmp_path: Path, clock: ManualClock
) -> None:
    await move_messages(tiered_environment, ALL_MESSAGES)
    assert count_files(tmp_path / "blobs") == 1
    clock.tick(days=800_000 // 1_000)  # later than the files, which have the system time
    await collect_garbage(
        tiered_environment.environment,
        tiered_environment.environment.object_store,
        grace_period=timedelta(0),
    )
    assert (count_files(tmp_path / "blobs"), count_files(tiered_environment.cold_folder)) == (0, 3)
    assert (await check_consistency(tiered_environment.environment)).findings == []
    assert {tier for _, tier in await subjects_with_tier(tiered_environment)} == {"COLD"}


async def test_shared_blob_moves_once(tiered_environment: TieredEnvironment) -> None:
    await run_message_mutation(
        tiered_environment.user_client,
        "messageCopy",
        select=inbox_selection("3"),
        to={"path": "Sent"},
    )
    payload = await move_messages(tiered_environment, inbox_selection("3"))
    assert payload["movedCount"] == 1
    assert count_files(tiered_environment.cold_folder) == 1
    assert await subjects_with_tier(tiered_environment, subject="long") == [("long", "COLD")] * 2
    assert (await move_messages(tiered_environment, {"mailbox": {"path": "Sent"}}))[
        "movedCount"
    ] == 0
    await deliver_to(
        tiered_environment.user_client, long_message("long"), sender="dave@example.com"
    )
    assert await subjects_with_tier(tiered_environment, subject="long") == [("long", "COLD")] * 3


async def test_crash_during_move_loses_nothing(tiered_environment: TieredEnvironment) -> None:
    def crash(fault_point: str) -> None:
        if fault_point == "tier":
            raise KeyboardInterrupt

    crashing_environment = replace(tiered_environment.environment, reach_fault_point=crash)
    admin_client = replace(tiered_environment.admin_client, environment=crashing_environment)
    select = MessageSelector(
        conditions=MessageConditions(),
        users=UserSelector(ids=(tiered_environment.user_client.user.id,)),
    )
    with pytest.raises(KeyboardInterrupt):
        await storage_tiers.move_to_tier_or_queue(
            client_context(admin_client), select, StorageTier.COLD
        )
    assert count_files(tiered_environment.cold_folder) == 3
    assert {tier for _, tier in await subjects_with_tier(tiered_environment)} == {"HOT"}
    assert (await check_consistency(tiered_environment.environment)).findings == []
    assert (await move_messages(tiered_environment, ALL_MESSAGES))["movedCount"] == 3


async def test_move_of_many_messages_is_task(
    tiered_environment: TieredEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_tiers, "MAX_INLINE_MESSAGES", 2)
    monkeypatch.setattr(storage_tiers, "MESSAGES_PER_STEP", 1)
    payload = await move_messages(tiered_environment, ALL_MESSAGES)
    assert (payload["movedCount"], payload["task"]["totalCount"]) == (0, 3)
    assert payload["task"]["kind"] == "MESSAGE_TIER_MOVE"
    assert count_files(tiered_environment.cold_folder) == 0
    await run_message_mutation(
        tiered_environment.user_client, "messageDelete", select=inbox_selection("1"), permanent=True
    )
    assert await tasks.run_next_task(tiered_environment.environment)
    assert await subjects_with_tier(tiered_environment) == [("b", "COLD"), ("long", "COLD")]


async def test_validate_only_moves_nothing(tiered_environment: TieredEnvironment) -> None:
    payload = await move_messages(tiered_environment, ALL_MESSAGES, options={"validateOnly": True})
    assert (payload["errors"], payload["movedCount"]) == ([], 3)
    assert count_files(tiered_environment.cold_folder) == 0


async def test_move_needs_admin_role_and_existing_messages(
    tiered_environment: TieredEnvironment,
) -> None:
    document = """mutation ($input: MessageTierMoveInput!) { messageTierMove(input: $input) {
        movedCount errors { code path } } }"""
    response = await tiered_environment.user_client.execute(
        document, input={"select": ALL_MESSAGES}
    )
    assert response["data"]["messageTierMove"]["errors"][0]["code"] == "FORBIDDEN"
    payload = await move_messages(tiered_environment, {"ids": ["msg_00000000000000000000000000"]})
    assert payload["errors"][0]["code"] in ("NOT_FOUND", "VALIDATION")
    assert count_files(tiered_environment.cold_folder) == 0


async def test_admin_cannot_move_messages_of_root(tiered_environment: TieredEnvironment) -> None:
    environment, admin = tiered_environment.environment, tiered_environment.admin_client
    chief = await make_client(environment, admin.http, "chief", role=Role.ROOT)
    await deliver_to(chief, long_message("of root"))
    select = {**ALL_MESSAGES, "users": user_selection(chief)}
    payload = await run_message_mutation(admin, "messageTierMove", select=select)
    assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
    assert count_files(tiered_environment.cold_folder) == 0


async def test_move_without_cold_store_is_unavailable(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    await deliver_to(ada)
    payload = await run_message_mutation(
        root, "messageTierMove", select={**ALL_MESSAGES, "users": user_selection(ada)}
    )
    assert [error["code"] for error in payload["errors"]] == ["UNAVAILABLE"]
    assert (await ada("{ messages { nodes { tier } } }"))["messages"]["nodes"] == [{"tier": "HOT"}]


async def test_damaged_object_is_not_moved(
    tiered_environment: TieredEnvironment, tmp_path: Path
) -> None:
    (path,) = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    await move_messages(tiered_environment, ALL_MESSAGES)
    assert count_files(tiered_environment.cold_folder) == 2
    path.write_bytes(content)
    assert (await move_messages(tiered_environment, ALL_MESSAGES))["movedCount"] == 1
    assert {tier for _, tier in await subjects_with_tier(tiered_environment)} == {"COLD"}
    event_types = {
        kind
        for kind, _ in await load_journal_entries(
            tiered_environment.environment, tiered_environment.user_client.user.id
        )
    }
    assert EventType.MESSAGE_UPDATED not in event_types

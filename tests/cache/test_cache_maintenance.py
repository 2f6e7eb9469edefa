"""Flush, clean, remove and rescan: effect, dry run, roles, audit log and bad input."""

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mail.delivery.listener_backend import LocalBackend
from mail.storage import message_trace
from models.auth.security_log import SecurityEventAction
from models.runtime import row_cache
from models.users.roles import Role
from resolvers.auth import security_log
from resolvers.auth.basic_auth import authenticate_basic
from resolvers.auth.credential_cache import cache_of_database
from resolvers.auth.security_event_rows import NewSecurityEvent
from tests.conftest import GraphQLClient, client_context, deliver_to, make_client, raw_message
from tests.support.accounts.security_events import load_security_events
from tests.support.accounts.user_operations import PASSWORD, execute_mutation
from tests.support.case_loop import each_case
from tests.support.operations.platform.blob_operations import (
    deliver_large_message,
    load_audit_entries,
)
from tests.support.operations.platform.cache_operations import (
    CACHE_ENTRIES,
    REMOVAL_FIELDS,
    CacheServer,
    clean_cache,
    flush_cache,
    list_entries,
    listed_names,
    open_cache_server,
    rescan_cache,
)
from tests.support.stores.blob_caches import CachedBucket
from tests.support.stores.counter_check import select_rows

TEXTS = "{ messages(first: 10) { nodes { text } } }"
SUBJECTS = "{ messages(first: 10) { nodes { subject } } }"
READS_UNTIL_CACHED = 4  # the first is not compiled, the second and third complete each row
DRY_RUN = {"options": {"validateOnly": True}}


@pytest.fixture
async def server(
    root: GraphQLClient, cached: CachedBucket, tmp_path: Path
) -> AsyncIterator[CacheServer]:
    async with open_cache_server(root, cached, tmp_path) as opened:
        yield opened


async def cache_message(client: GraphQLClient, seed: int) -> None:
    await deliver_large_message(client, f"Message {seed}", seed)
    await client(TEXTS)


async def count_steps(client: GraphQLClient) -> int:
    rows = await select_rows(client.environment, "SELECT count(*) FROM delivery_trace_steps")
    return int(rows[0][0])


async def test_flush_writes_all_that_is_pending(root: GraphQLClient, ada: GraphQLClient) -> None:
    environment = root.environment
    cache = cache_of_database(environment.database)
    await cache.wait_for_started_writes()
    await message_trace.write_pending_trace_steps(environment)
    before = await count_steps(root)
    backend = LocalBackend(environment)
    recipient = await backend.accept_recipient(ada.address, "carol@example.com")
    await backend.deliver(raw_message("Report"), [recipient], "carol@example.com")
    steps = message_trace.count_pending_trace_steps(environment).waiting
    assert steps > 0
    cache.events_written_at = asyncio.get_running_loop().time()  # the next write waits
    event = NewSecurityEvent(SecurityEventAction.API_KEY_REFUSED, ada.user.id)
    security_log.log_event_in_background(client_context(ada), event)
    dry_run = await flush_cache(root, **DRY_RUN)
    assert dry_run["entryCount"] >= steps + 1
    assert message_trace.count_pending_trace_steps(environment).waiting == steps
    of_ada = await flush_cache(root, users={"usernames": ["ada"]}, **DRY_RUN)
    assert of_ada["entryCount"] == 1
    payload = await flush_cache(root)
    assert (payload["lostCount"], payload["unresponsiveNodes"], payload["errors"]) == (0, [], [])
    assert payload["entryCount"] >= steps + 1
    assert await count_steps(root) == before + steps
    actions = [row.action for row in await load_security_events(environment)]
    assert SecurityEventAction.API_KEY_REFUSED in actions
    assert await listed_names(root, dirty=True, users={"usernames": ["ada"]}) == []
    (entry,) = await load_audit_entries(root, "cacheFlush")
    assert entry["after"]["count"] >= steps + 1


async def test_flush_reports_lost_writes(
    root: GraphQLClient, ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_trace, "WRITE_DELAY", 3600.0)  # only the flush writes
    environment = root.environment
    cache = cache_of_database(environment.database)
    await cache.wait_for_started_writes()
    backend = LocalBackend(environment)
    recipient = await backend.accept_recipient(ada.address, "carol@example.com")
    await backend.deliver(raw_message("Report"), [recipient], "carol@example.com")

    async def fail() -> None:
        while message_trace.count_pending_trace_steps(environment).waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        raise RuntimeError("the database is away")

    cache.write_in_background(fail())
    assert (await flush_cache(root))["lostCount"] == 1
    assert (await flush_cache(root))["lostCount"] == 0


async def test_flush_waits_for_writes_only(root: GraphQLClient) -> None:
    cache = cache_of_database(root.environment.database)
    await cache.wait_for_started_writes()
    is_allowed_to_end, has_written = asyncio.Event(), []

    async def write() -> None:
        await asyncio.sleep(0.1)
        has_written.append(True)

    async def fail() -> None:
        raise RuntimeError("no data is lost")

    cache.run_in_background(is_allowed_to_end.wait())  # until the end of the test
    cache.run_in_background(fail())
    cache.write_in_background(write())
    assert (await flush_cache(root))["lostCount"] == 0
    assert has_written == [True]
    is_allowed_to_end.set()
    await asyncio.wait(cache.background_tasks)


async def test_clean_removes_what_was_not_used(
    server: CacheServer, root: GraphQLClient, ada: GraphQLClient
) -> None:
    boss, ada = server.client_of(root), server.client_of(ada)
    for seed in (1, 2):
        await cache_message(ada, seed)
    old, new = server.cached.object_files()
    size = old.stat().st_size
    used_at = time.time() - 31 * 86_400
    os.utime(old, (used_at, used_at))
    expected = {"entryCount": 1, "size": size, "unresponsiveNodes": [], "errors": []}
    assert await clean_cache(boss, days=30, **DRY_RUN) == expected
    assert old.exists()
    assert await clean_cache(boss, days=30) == expected
    assert server.cached.object_files() == [new]
    assert (await clean_cache(boss, days=30))["entryCount"] == 0
    assert cache_of_database(root.environment.database).credentials
    payload = await clean_cache(boss)  # everything, also the credential of this request
    assert payload["entryCount"] >= 3
    assert server.cached.object_files() == []
    assert server.cached.store.cache.folder.file_totals().size == 0
    await ada(TEXTS)  # sign-in and message are read again
    entries = await load_audit_entries(boss, "cacheClean")
    assert [entry["after"]["days"] for entry in entries] == [0, 30, 30]


async def test_remove_takes_only_entries_of_the_users(
    server: CacheServer, root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    boss, ada, bob = (server.client_of(client) for client in (root, ada, bob))
    await cache_message(ada, 1)
    await cache_message(bob, 2)
    cache = cache_of_database(root.environment.database)
    (of_bob,) = await listed_names(boss, kinds=["BLOB"], users={"usernames": ["bob"]})
    count = len(cache.credentials)
    fields = {"users": {"patterns": ["ad?"]}}
    dry_run = await execute_mutation(boss, "cacheRemove", REMOVAL_FIELDS, **fields, **DRY_RUN)
    payload = await execute_mutation(boss, "cacheRemove", REMOVAL_FIELDS, **fields)
    assert payload == dry_run
    assert payload["entryCount"] == 3  # a credential, an object and a parsed message
    assert await listed_names(boss, kinds=["BLOB"]) == [of_bob]
    assert len(cache.credentials) == count - 1
    assert {credential.viewer.user_id for credential in cache.credentials.values()} == {
        0, bob.user.id,
    }  # fmt: skip
    (entry,) = await load_audit_entries(boss, "cacheRemove")
    assert entry["after"]["count"] == 3


async def test_parsed_messages_and_password_checks_are_removed(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment = root.environment
    await root("{ viewer { role } }")  # the first use of a credential clears the cache
    await make_client(environment, root.http, "carol", password=PASSWORD)
    secret = base64.b64encode(f"carol:{PASSWORD}".encode()).decode()
    await authenticate_basic(environment, secret, "192.0.2.1")
    for client in (ada, bob):
        await deliver_to(client, f"Hello {client.user.username:>5}")
        await client(TEXTS)
    kinds = ["PARSED_MESSAGE", "PASSWORD_CHECK"]
    used_bytes = environment.byte_cache.used_bytes
    removal = "cacheRemove", REMOVAL_FIELDS
    payload = await execute_mutation(root, *removal, users={"usernames": ["ada"]})
    assert payload["entryCount"] == 2  # with the credential
    assert environment.byte_cache.used_bytes == used_bytes // 2
    assert await listed_names(root, kinds=kinds, users={"usernames": ["ada"]}) == []
    assert await listed_names(root, kinds=kinds) == ["parsed message", "password check"]
    await execute_mutation(root, *removal, users={"usernames": ["carol"]})
    assert await listed_names(root, kinds=kinds) == ["parsed message"]
    assert not cache_of_database(environment.database).password_checks
    assert (await clean_cache(root, days=1))["entryCount"] == 0
    await clean_cache(root)
    assert await listed_names(root, kinds=kinds) == []
    assert environment.byte_cache.used_bytes == 0
    assert len((await bob(TEXTS))["messages"]["nodes"]) == 1  # it is parsed again


async def test_rows_of_lists_are_listed_and_removed(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    row_cache.ROW_CACHE.clear()
    for client in (ada, bob):
        await deliver_to(client, "Confidential")
    for _ in range(READS_UNTIL_CACHED):
        await ada(SUBJECTS)
    (node,) = (await list_entries(root, filter={"kinds": ["LIST_ROW"]}))["nodes"]
    assert (node["name"], node["user"], node["dirty"]) == ("rows of lists", None, False)
    assert node["size"] == row_cache.ROW_CACHE.used_bytes > 0
    assert "Confidential" not in str(await root.execute(CACHE_ENTRIES))
    users = {"usernames": ["ada"]}
    assert await listed_names(root, kinds=["LIST_ROW"], users=users) == []
    dry_run = {"users": users, **DRY_RUN}
    await execute_mutation(root, "cacheRemove", REMOVAL_FIELDS, **dry_run)
    await clean_cache(root, days=1)
    assert row_cache.ROW_CACHE.used_bytes == node["size"]
    await execute_mutation(root, "cacheRemove", REMOVAL_FIELDS, users={"usernames": ["bob"]})
    assert row_cache.ROW_CACHE.used_bytes == 0
    for _ in range(READS_UNTIL_CACHED):
        (message,) = (await ada(SUBJECTS))["messages"]["nodes"]
        assert message["subject"] == "Confidential"
    assert row_cache.ROW_CACHE.used_bytes > 0
    await clean_cache(root)
    assert await listed_names(root, kinds=["LIST_ROW"]) == []


async def test_remove_keeps_pending_writes(root: GraphQLClient, ada: GraphQLClient) -> None:
    cache = cache_of_database(root.environment.database)
    await cache.wait_for_started_writes()
    cache.events_written_at = asyncio.get_running_loop().time()  # the next write waits
    event = NewSecurityEvent(SecurityEventAction.API_KEY_REFUSED, ada.user.id)
    security_log.log_event_in_background(client_context(ada), event)
    security_log.log_event_in_background(client_context(ada), event)
    await execute_mutation(root, "cacheRemove", REMOVAL_FIELDS, users={"usernames": ["ada"]})
    await cache.wait_for_started_writes()
    rows = await load_security_events(root.environment)
    assert SecurityEventAction.API_KEY_REFUSED in [row.action for row in rows]


async def test_rescan_removes_damaged_and_foreign_files(
    server: CacheServer, root: GraphQLClient, ada: GraphQLClient
) -> None:
    boss, ada = server.client_of(root), server.client_of(ada)
    for seed in (1, 2):
        await cache_message(ada, seed)
    damaged, whole = server.cached.object_files()
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (server.cached.folder / "foreign").write_bytes(b"x" * 100)
    assert (await rescan_cache(boss, **DRY_RUN))["entryCount"] == 0
    payload = await rescan_cache(boss)
    assert payload == {
        "entryCount": 2, "size": len(data) + 100, "incompleteNodes": [], "unresponsiveNodes": [],
        "errors": [],
    }  # fmt: skip
    assert server.cached.object_files() == [whole]
    prefix = f"{whole.parent.name}/"
    assert (await rescan_cache(boss, path=prefix, maxAge="PT1H"))["entryCount"] == 0
    assert (await rescan_cache(boss, path="zz", maxAge="PT0S"))["entryCount"] == 0
    assert (await rescan_cache(boss, path=prefix, maxAge="PT0S"))["entryCount"] == 1
    assert len(await load_audit_entries(boss, "cacheRescan")) == 4


async def test_rescan_of_unreadable_folder_is_incomplete(
    server: CacheServer, root: GraphQLClient
) -> None:
    folder = server.cached.folder
    folder.rename(folder.with_name("moved"))
    assert len((await rescan_cache(server.client_of(root)))["incompleteNodes"]) == 1
    assert (await clean_cache(server.client_of(root)))["errors"] == []
    folder.with_name("moved").rename(folder)


async def test_without_blob_cache_nothing_is_rescanned(root: GraphQLClient) -> None:
    assert (await rescan_cache(root))["entryCount"] == 0


BAD_INPUTS: dict[str, tuple[str, Any, str]] = {
    "negative": ("cacheClean", {"days": -1}, "days"),
    "many days": ("cacheClean", {"days": 36_501}, "days"),
    "up": ("cacheRescan", {"path": "../x"}, "path"),
    "long": ("cacheRescan", {"path": "x" * 10**6}, "path"),
    "levels": ("cacheRescan", {"path": "x/" * 10_000}, "path"),
    "unknown user": ("cacheRemove", {"users": {"usernames": ["nobody"]}}, "users"),
    "long pattern": ("cacheRemove", {"users": {"patterns": ["x" * 1000]}}, "users"),
}


async def test_bad_input_has_a_typed_error_and_no_effect(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    for case in each_case(BAD_INPUTS):
        with case as name:
            mutation, fields, path = BAD_INPUTS[name]
            await ada("{ viewer { role } }")
            count = len(cache_of_database(root.environment.database).credentials)
            (error,) = (await execute_mutation(root, mutation, "entryCount", **fields))["errors"]
            assert error["path"][0] == path
            assert len(cache_of_database(root.environment.database).credentials) >= count
            assert await load_audit_entries(root, mutation) == []


MUTATIONS: dict[str, Any] = {
    "cacheFlush": {},
    "cacheClean": {},
    "cacheRemove": {"users": {"all": True}},
    "cacheRescan": {},
    "cacheUnpack": {"bundleName": "x", "bundle": {"text": "x"}, "path": "admin/x"},
}


async def test_administrators_change_nothing(root: GraphQLClient) -> None:
    admin = await make_client(root.environment, root.http, "boss", role=Role.ADMIN)
    for case in each_case(MUTATIONS):
        with case as mutation:
            type_name = mutation[0].upper() + mutation[1:]
            selection = f"{mutation}(input: $input) {{ errors {{ code }} }}"
            document = f"mutation ($input: {type_name}Input!) {{ {selection} }}"
            data = await admin(document, input=MUTATIONS[mutation])
            assert data == {mutation: {"errors": [{"code": "FORBIDDEN"}]}}
            assert await load_audit_entries(root, mutation) == []


async def test_idempotency_key_is_refused(root: GraphQLClient) -> None:
    payload = await clean_cache(root, options={"idempotencyKey": "again"})
    (error,) = payload["errors"]
    assert error["path"] == ["options", "idempotencyKey"]

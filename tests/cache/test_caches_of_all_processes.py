"""Caches of a server with several processes, an S3 bucket and a shared blob cache."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import raw_message
from tests.support.operations.platform.blob_operations import large_body
from tests.support.operations.platform.cache_operations import (
    CACHE_ENTRIES,
    FLUSH_FIELDS,
    REMOVAL_FIELDS,
    RESCAN_FIELDS,
)
from tests.support.servers.merganser_server import HttpClient, MerganserProcess
from tests.support.servers.suspended_process import suspend_process
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database

NEWEST_TEXT = "{ messages(first: 1) { nodes { text } } }"
WORKERS = 2


@pytest.fixture(params=store_fixtures.STORES, scope="module")
def server(
    request: pytest.FixtureRequest, s3_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MerganserProcess]:
    folder = tmp_path_factory.mktemp("server")
    store = ""
    if request.param == "postgres":
        store = create_migrated_database(request.getfixturevalue("postgres"), "cache_server")
    prefix = os.urandom(6).hex()
    options = f"endpoint={s3_server}&region=eu-west-1&access_key_id=a&secret_access_key=b"
    settings = {
        "OBJECT_STORE_URL": f"s3://bucket/{prefix}?{options}",
        "BLOB_CACHE": str(folder / "cache"),
    }
    process = MerganserProcess(folder, store, settings, serve_arguments=("--workers", str(WORKERS)))
    process.create_users("ada", "bob")
    process.start()
    yield process
    process.stop()


async def list_all(client: HttpClient, **entry_filter: Any) -> Any:
    variables = {"filter": entry_filter or None, "first": 200}
    return (await client(CACHE_ENTRIES, **variables))["cacheEntries"]


def worker_pids(server: MerganserProcess) -> list[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


async def deliver_and_read_on_all_processes(server: MerganserProcess, name: str, seed: int) -> None:
    """Deliver a message that is an object, and read it over many connections.

    The processes keep parsed messages in memory, so only a new one is read from the cache.
    """
    raw = raw_message(f"Message {seed}", body=large_body(seed))
    reply = await server.deliver_by_lmtp(raw, f"{name}@example.org")
    assert reply.startswith("250")
    await read_on_all_processes(server, name)


async def read_on_all_processes(server: MerganserProcess, name: str) -> None:
    """Read the newest message of a user over many connections, which the kernel spreads."""
    for _ in range(12):
        async with server.open_client(name) as client:
            await client(NEWEST_TEXT)


async def test_caches_of_all_processes(server: MerganserProcess) -> None:
    for name, seed in (("ada", 1), ("bob", 2)):
        await deliver_and_read_on_all_processes(server, name, seed)
    async with server.open_client("root") as root:
        blobs = await list_all(root, kinds=["BLOB"])
        assert blobs["totalCount"] == len(blobs["nodes"]) == 2  # not once for each process
        assert {node["pid"] for node in blobs["nodes"]} == {None}
        credentials = await list_all(root, kinds=["CREDENTIAL"], users={"usernames": ["ada"]})
        assert {node["pid"] for node in credentials["nodes"]} <= set(worker_pids(server))
        assert len(credentials["nodes"]) == WORKERS
        users = {"patterns": ["a*"]}
        removed = await root.run_mutation("cacheRemove", {"users": users}, REMOVAL_FIELDS)
        assert removed["entryCount"] == 1 + 2 * WORKERS  # object, then sign-in and parsed message
        assert (await list_all(root, users=users))["totalCount"] == 0
        dry_run = {"days": 0, "options": {"validateOnly": True}}
        cleaned = await root.run_mutation("cacheClean", dry_run, REMOVAL_FIELDS)
        assert cleaned["entryCount"] >= 1 + WORKERS  # the object of bob counts once
        flushed = await root.run_mutation("cacheFlush", {}, FLUSH_FIELDS)
        assert (flushed["lostCount"], flushed["unresponsiveNodes"]) == (0, [])
        assert {path.stat().st_mode & 0o777 for path in cached_files(server)} == {0o600}
        (path,) = cached_files(server)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 1)
        rescanned = await root.run_mutation("cacheRescan", {}, RESCAN_FIELDS)
        assert (rescanned["entryCount"], rescanned["incompleteNodes"]) == (1, [])
        assert cached_files(server) == []


def cached_files(server: MerganserProcess) -> list[Path]:
    return [path for path in (server.folder / "cache").glob("*/*/*") if path.is_file()]


async def test_commands_reach_all_processes(server: MerganserProcess) -> None:
    await deliver_and_read_on_all_processes(server, "bob", 3)

    async def run(*arguments: str) -> Any:
        return await asyncio.to_thread(server.run_command, "cache", *arguments)

    listed = await run("list", "--user", "bob", "--json")
    entries = json.loads(listed.stdout)
    assert {entry["kind"] for entry in entries} >= {"BLOB", "CREDENTIAL"}
    assert {entry["user"] for entry in entries} <= {"bob", None}
    assert server.secrets["bob"] not in listed.stdout
    flushed = await run("flush")
    assert (flushed.exit_code, "pending writes are durable" in flushed.stdout) == (0, True)
    assert "files removed" in (await run("rescan", "--max-age", "30 days")).stdout
    cleaned = await run("clean", "--pattern", "b*")
    assert (cleaned.exit_code, "entries removed" in cleaned.stdout) == (0, True)
    assert json.loads((await run("list", "--kind", "blob", "--json")).stdout) == []
    for wrong in (
        ["list", "--kind", "X"],
        ["rescan", "--max-age", "soon"],
        ["clean", "--days", "-1"],
    ):
        output = await run(*wrong)
        assert output.exit_code != 0
        assert "Traceback" not in output.stderr


async def test_node_with_a_suspended_process_is_named(server: MerganserProcess) -> None:
    async with server.open_client("root") as root:
        await list_all(root)
        node = f"mx.example.org:{server.http_port}"
        answering = {entry["pid"] for entry in (await list_all(root))["nodes"]}
        suspended = next(pid for pid in worker_pids(server) if pid not in answering)
        with suspend_process(server, suspended):
            result = await list_all(root)
        assert result["unresponsiveNodes"] == [node]
        assert result["totalCount"] == len(result["nodes"])


async def test_cache_is_warm_after_restart(server: MerganserProcess) -> None:
    await deliver_and_read_on_all_processes(server, "bob", 4)
    server.stop()
    server.start()
    async with server.open_client("root") as root:
        before = await list_all(root, kinds=["BLOB"])
        assert before["totalCount"] == 1
    await read_on_all_processes(server, "bob")
    metrics = await _cache_reads(server)
    assert metrics == {"hit"}


async def _cache_reads(server: MerganserProcess) -> set[str]:
    """Return the results of reads through the cache since the start."""
    async with server.open_client("root") as root:
        text = (await root.http.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("merganser_blob_cache_reads")]
    return {
        line.partition('result="')[2].partition('"')[0]
        for line in lines
        if not line.endswith(" 0") and not line.endswith(" 0.0")
    }

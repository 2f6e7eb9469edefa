"""A backup of a server under load, which is killed: its restore has no difference."""

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.accounts.account_rows import message_with_subject
from tests.support.servers.merganser_server import MerganserProcess
from tests.support.servers.postgres_cluster import PostgresTestCluster, program_folder
from tests.support.stores import store_fixtures
from tests.support.stores.restored_clients import (
    PATIENCE,
    ClientState,
    assert_clients_must_resync,
    deliver,
    read_state,
)

MESSAGE_SQL = "SELECT id, user_id, sha256, blob_id FROM messages"
SENDER_COUNT = 3
MIN_MESSAGES = 20  # delivered before the backup, and again after its start
RESTORED_DATABASE = "restored"
DATABASES = ("postgres", RESTORED_DATABASE)

MessageRows = set[tuple[Any, ...]]


@dataclass(frozen=True)
class StoreUnderTest:
    """A server to back up, an empty one to restore to, and the reader of their databases."""

    server: MerganserProcess
    restored: MerganserProcess
    read_rows: Callable[[MerganserProcess], MessageRows]


def read_sqlite_rows(server: MerganserProcess) -> MessageRows:
    path = server.folder / "var" / "merganser.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        return set(database.execute(MESSAGE_SQL).fetchall())


def read_postgres_rows(cluster: PostgresTestCluster, server: MerganserProcess) -> MessageRows:
    database = server.store_url.partition("?")[0].rpartition("/")[2]
    return {tuple(line.split("|")) for line in cluster.run_sql(MESSAGE_SQL, database).splitlines()}


@pytest.fixture(params=["sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StoreUnderTest]:
    """A started server with one user, and the folder for its restore."""
    if request.param not in store_fixtures.STORES:
        pytest.skip(f"STORES has no {request.param}")
    folders = [tmp_path / name for name in ("loaded", "restored")]
    for folder in folders:
        folder.mkdir()
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            server, restored = (MerganserProcess(folder) for folder in folders)
            reader: Callable[[MerganserProcess], MessageRows] = read_sqlite_rows
        else:
            monkeypatch.setenv("PATH", f"{program_folder()}:{os.environ['PATH']}")
            cluster = PostgresTestCluster().initialize().start()
            stack.callback(cluster.remove)
            cluster.run_sql(f"CREATE DATABASE {RESTORED_DATABASE}")
            server, restored = (
                MerganserProcess(folder, cluster.database_url(database))
                for folder, database in zip(folders, DATABASES, strict=True)
            )
            reader = partial(read_postgres_rows, cluster)
        server.create_users("ada")
        restored.secrets = server.secrets
        server.start()
        yield StoreUnderTest(server, restored, reader)
        for process in (server, restored):
            if process.is_running:
                process.kill()


@asynccontextmanager
async def deliver_continuously(server: MerganserProcess) -> AsyncIterator[list[str]]:
    """Deliver messages until the block ends; yields the accepted subjects."""
    accepted: list[str] = []

    async def send_forever(sender: int) -> None:
        number = 0
        while True:
            subject = f"load {sender} {number}"
            await deliver(server, subject)
            accepted.append(subject)
            number += 1

    tasks = [asyncio.create_task(send_forever(sender)) for sender in range(SENDER_COUNT)]
    try:
        yield accepted
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def wait_for_count(accepted: list[str], count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while len(accepted) < count:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0.01)


async def back_up_under_load_and_kill(
    store: StoreUnderTest, target: Path, keys: Path
) -> tuple[MessageRows, ClientState, dict[str, Any]]:
    """Return the messages before the backup, the state of a client, and the backup's report."""
    server = store.server
    await deliver(server, "first")
    async with server.open_client("ada") as client:
        client_state = await read_state(client)
    async with deliver_continuously(server) as accepted:
        await wait_for_count(accepted, MIN_MESSAGES)
        rows_before = await asyncio.to_thread(store.read_rows, server)
        first = await asyncio.to_thread(server.run_command, "backup", target, "--json")
        assert first.exit_code == 0, first.stdout + first.stderr
        await wait_for_count(accepted, len(accepted) + MIN_MESSAGES)
        rows_before |= await asyncio.to_thread(store.read_rows, server)
        second = await asyncio.to_thread(
            server.run_command, "backup", target, "--keys", keys, "--verify", "--json"
        )
        assert second.exit_code == 0, second.stdout + second.stderr
        await wait_for_count(accepted, len(accepted) + MIN_MESSAGES)
        server.kill()
    report: dict[str, Any] = json.loads(second.stdout)
    assert 0 < report["copied_objects"] < report["objects"]  # the first backup had the others
    return rows_before, client_state, report


def test_backup_under_load_restores_without_difference(
    store: StoreUnderTest, tmp_path: Path
) -> None:
    target, keys = tmp_path / "backup", tmp_path / "keys"
    rows_before, client_state, report = store_fixtures.run_in_new_loop(
        back_up_under_load_and_kill(store, target, keys)
    )
    rows_at_kill = store.read_rows(store.server)
    result = store.restored.run_command("restore", target, "--keys", keys, "--json")
    assert result.exit_code == 0, result.stdout + result.stderr
    restored_report = json.loads(result.stdout)
    assert restored_report["check"]["findings"] == []
    assert restored_report["restored_objects"] == report["objects"]
    assert restored_report["missing_objects"] == []
    restored_rows = store.read_rows(store.restored)
    assert rows_before <= restored_rows <= rows_at_kill
    assert restored_rows < rows_at_kill  # deliveries went on after the backup
    store.restored.start()
    store_fixtures.run_in_new_loop(
        assert_clients_must_resync(store.restored, client_state, client_state)
    )
    store.restored.stop()


def test_restore_refuses_running_server(store: StoreUnderTest, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    backup = store.server.run_command("backup", target)
    assert backup.exit_code == 0, backup.stdout + backup.stderr
    result = store.server.run_command("restore", target)
    assert result.exit_code == 1
    assert "stop" in result.stderr


def test_backup_keeps_objects_that_the_store_has_lost_since(
    store: StoreUnderTest, tmp_path: Path
) -> None:
    target, keys = tmp_path / "backup", tmp_path / "keys"
    raw = message_with_subject("kept", attachment_size=9000)
    reply = store_fixtures.run_in_new_loop(store.server.deliver_by_lmtp(raw, "ada@example.org"))
    assert reply.startswith("250"), reply
    assert store.server.run_command("backup", target).exit_code == 0
    store.server.kill()
    for path in (store.server.folder / "var" / "blobs").glob("[0-9a-f][0-9a-f]/*"):
        if path.name not in {"merganser.mark", "incarnation.json"}:
            path.unlink()
    second = store.server.run_command("backup", target, "--keys", keys, "--json")
    assert second.exit_code == 0, second.stdout + second.stderr
    assert json.loads(second.stdout)["copied_objects"] == 0
    result = store.restored.run_command("restore", target, "--keys", keys)
    assert result.exit_code == 0, result.stdout + result.stderr

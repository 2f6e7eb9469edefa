"""A backup of a server under load, which is killed: its restore has no difference."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from bench.servers.compared_servers import postgres_program_folder
from bench.servers.ports import free_port
from models.queue.tables import QueueEntry
from tests.support.accounts.account_rows import message_with_subject
from tests.support.servers.merganser_server import MerganserProcess
from tests.support.servers.postgres_cluster import PostgresTestCluster
from tests.support.stores import store_fixtures
from tests.support.stores.restored_clients import (
    PATIENCE,
    ClientState,
    assert_clients_must_resync,
    deliver,
    read_state,
)
from tests.support.stores.small_disk import mount_small_disk

MESSAGE_SQL = "SELECT id, user_id, sha256, blob_id FROM messages"
SENDER_COUNT = 3
MIN_MESSAGES = 20  # delivered before the backup, and again after its start

MessageRows = set[tuple[Any, ...]]


@dataclass(frozen=True)
class StoreUnderTest:
    """A server to back up, an empty one to restore to, and the reader of their databases."""

    server: MerganserProcess
    restored: MerganserProcess
    read_rows: Callable[[MerganserProcess], MessageRows]
    create_empty_server: Callable[[], MerganserProcess]  # for another restore


@dataclass
class EmptyServers:
    """Servers with an empty folder and, in a PostgreSQL cluster, an empty database."""

    folder: Path
    cluster: PostgresTestCluster | None
    secrets: dict[str, str]
    created: list[MerganserProcess] = field(default_factory=list)

    def create(self) -> MerganserProcess:
        name = f"restored_{len(self.created)}"
        (self.folder / name).mkdir()
        url = ""
        if self.cluster:
            self.cluster.run_sql(f"CREATE DATABASE {name}")
            url = self.cluster.database_url(name)
        self.created.append(MerganserProcess(self.folder / name, url, secrets=self.secrets))
        return self.created[-1]


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
    """A started server with one user, and an empty server for its restore."""
    if request.param not in store_fixtures.STORES:
        pytest.skip(f"STORES has no {request.param}")
    folder = tmp_path / "loaded"
    cluster: PostgresTestCluster | None = None
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            prepared: MerganserProcess = request.getfixturevalue("prepared_server")
            shutil.copytree(prepared.folder, folder)
            server = MerganserProcess(folder, secrets=prepared.secrets)
            reader: Callable[[MerganserProcess], MessageRows] = read_sqlite_rows
        else:
            monkeypatch.setenv("PATH", f"{postgres_program_folder()}:{os.environ['PATH']}")
            cluster = PostgresTestCluster().initialize().start()
            stack.callback(cluster.remove)
            folder.mkdir()
            server = MerganserProcess(folder, cluster.store_url)
            server.create_users("ada")
            reader = partial(read_postgres_rows, cluster)
        empty_servers = EmptyServers(tmp_path, cluster, server.secrets)
        server.start()
        yield StoreUnderTest(server, empty_servers.create(), reader, empty_servers.create)
        for process in (server, *empty_servers.created):
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


def test_killed_backup_leaves_the_earlier_one_and_the_next_continues(
    store: StoreUnderTest, tmp_path: Path
) -> None:
    server, target, keys = store.server, tmp_path / "backup", tmp_path / "keys"
    store_fixtures.run_in_new_loop(deliver(server, "first"))
    earlier_rows = store.read_rows(server)
    first = server.run_command("backup", target, "--keys", keys, "--json")
    assert first.exit_code == 0, first.stdout + first.stderr
    earlier_report = json.loads(first.stdout)
    for fault_point in ("copied", "objects", "stored", "completed"):
        store_fixtures.run_in_new_loop(deliver(server, f"not in the backup before {fault_point}"))
        rows = store.read_rows(server)
        server.extra_settings["FAULT"] = f"{fault_point}:1"
        killed = server.run_command("backup", target, "--keys", keys, "--keep", "1")
        assert killed.exit_code == -signal.SIGKILL, killed.stdout + killed.stderr
        del server.extra_settings["FAULT"]
        restored = store.create_empty_server()
        result = restored.run_command("restore", target, "--keys", keys)
        assert result.exit_code == 0, result.stdout + result.stderr
        is_complete = fault_point == "completed"
        assert store.read_rows(restored) == (rows if is_complete else earlier_rows), fault_point
        following = server.run_command("backup", target, "--keys", keys, "--keep", "1", "--json")
        assert following.exit_code == 0, following.stdout + following.stderr
        report = json.loads(following.stdout)
        assert earlier_report["id"] in report["deleted_backups"], fault_point
        assert report["copied_objects"] == (1 if fault_point == "copied" else 0), fault_point
        assert [path.name for path in (target / ".backup").iterdir()] == ["lock"]
        earlier_rows, earlier_report = rows, report


def test_killed_restore_can_be_repeated(store: StoreUnderTest, tmp_path: Path) -> None:
    server, target, keys = store.server, tmp_path / "backup", tmp_path / "keys"
    store_fixtures.run_in_new_loop(deliver(server, "first"))
    rows = store.read_rows(server)
    backup = server.run_command("backup", target, "--keys", keys)
    assert backup.exit_code == 0, backup.stdout + backup.stderr
    for fault_point in ("objects", "restored"):
        restored = store.create_empty_server()
        restored.extra_settings["FAULT"] = f"{fault_point}:1"
        killed = restored.run_command("restore", target, "--keys", keys)
        assert killed.exit_code == -signal.SIGKILL, killed.stdout + killed.stderr
        del restored.extra_settings["FAULT"]
        again = restored.run_command("restore", target, "--keys", keys, "--keep-objects")
        if fault_point == "objects":
            assert again.exit_code == 0, again.stdout + again.stderr
        else:  # the server begins the incarnation that the restore has not begun
            assert again.exit_code == 1
            restored.start()
            restored.stop()
        assert store.read_rows(restored) == rows, fault_point
        check = restored.run_command("check")
        assert check.exit_code == 0, check.stdout


def test_restore_can_hold_the_queue(store: StoreUnderTest, tmp_path: Path) -> None:
    server, restored, target = store.server, store.restored, tmp_path / "backup"
    server.stop()
    closed_port = free_port()
    server.extra_settings["NEXT_HOP"] = f"smtp://127.0.0.1:{closed_port}"
    server.start()

    async def send_message() -> None:
        async with server.open_client("ada") as client:
            message = {"to": [{"address": "bob@example.com"}], "subject": "waits", "text": "Hi"}
            await client.run_mutation("messageSend", message)

    store_fixtures.run_in_new_loop(send_message())
    keys = tmp_path / "keys"
    backup = server.run_command("backup", target, "--keys", keys)
    assert backup.exit_code == 0, backup.stdout + backup.stderr
    server.stop()

    async def count_held(restored: MerganserProcess) -> int:
        async with restored.environment() as environment:
            statement = select(QueueEntry.id).where(col(QueueEntry.held_at).is_not(None))
            return len(await environment.database.read(statement))

    arguments = ("restore", target, "--keys", keys, "--hold-queue", "--json")
    restore = restored.run_command(*arguments)
    assert restore.exit_code == 0, restore.stdout + restore.stderr
    assert json.loads(restore.stdout)["waiting_recipients"] == 0
    assert store_fixtures.run_in_new_loop(count_held(restored)) == 1
    interrupted = store.create_empty_server()
    interrupted.extra_settings["FAULT"] = "restored:1"  # as soon as a server can start
    killed = interrupted.run_command(*arguments)
    assert killed.exit_code == -signal.SIGKILL, killed.stdout + killed.stderr
    assert store_fixtures.run_in_new_loop(count_held(interrupted)) == 1
    interrupted.extra_settings.pop("FAULT")
    interrupted.start()
    interrupted.stop()
    assert store_fixtures.run_in_new_loop(count_held(interrupted)) == 1


def test_no_server_uses_a_database_before_its_restore_is_complete(
    store: StoreUnderTest, tmp_path: Path
) -> None:
    server, restored, target = store.server, store.restored, tmp_path / "backup"
    store_fixtures.run_in_new_loop(deliver(server, "first"))
    keys = tmp_path / "keys"
    backup = server.run_command("backup", target, "--keys", keys)
    assert backup.exit_code == 0, backup.stdout + backup.stderr
    restored.extra_settings["FAULT"] = "dump:1"
    arguments = ("restore", target, "--keys", keys, "--keep-objects")
    killed = restored.run_command(*arguments)
    assert killed.exit_code == -signal.SIGKILL, killed.stdout + killed.stderr
    restored.extra_settings.pop("FAULT")
    again = restored.run_command(*arguments)
    if not restored.store_url:  # SQLite: there is no database yet
        assert again.exit_code == 0, again.stdout + again.stderr
        return
    assert (again.exit_code, "empty" in again.stderr) == (1, True), again.stderr
    for command in (("init",), ("serve",)):
        refused = restored.run_command(*command)
        assert refused.exit_code == 1, refused.stdout + refused.stderr


def test_full_disk_of_the_target_is_one_sentence_and_keeps_the_earlier_backup(
    store: StoreUnderTest, tmp_path: Path
) -> None:
    with mount_small_disk(tmp_path / "disk", 64) as disk:
        target, keys = disk.folder / "backup", tmp_path / "keys"
        first = store.server.run_command("backup", target, "--keys", keys)
        assert first.exit_code == 0, first.stdout + first.stderr
        disk.fill(spare=4096)
        store_fixtures.run_in_new_loop(deliver(store.server, "later"))
        full = store.server.run_command("backup", target)
        assert full.exit_code == 1
        assert "full" in full.stderr or "space" in full.stderr
        assert len(full.stderr.strip().splitlines()) == 1, full.stderr
        result = store.restored.run_command("restore", target, "--keys", keys)
        assert result.exit_code == 0, result.stdout + result.stderr


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

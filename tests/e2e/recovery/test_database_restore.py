"""Tests of real restores: cursors, UIDs and links of the lost history become invalid."""

import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.maintenance.restore_mark import CHANGES_LOST, CHECK_INTERVAL, read_mark
from models.events.incarnation import MARK_OBJECT_NAME
from models.events.journal import Stream
from models.users.tables import User
from tests.support.accounts.account_rows import message_with_subject
from tests.support.servers.merganser_server import ROOT, HttpClient, MerganserProcess
from tests.support.servers.postgres_cluster import PostgresTestCluster
from tests.support.stores import store_fixtures

CHANGES_QUERY = """query ($after: Cursor!) { changes(after: $after) { cursor events { type
  ... on ResyncChange { reason } ... on MessageChange { messageId } } } }"""
STATE_QUERY = """{ viewer { user { cursor
  mailboxes { path uidValidity }
  messages(first: 1) { nodes { attachments { url } } } } } }"""
CHANGES_SUBSCRIPTION = (
    "subscription ($after: Cursor) { changes(after: $after) { cursor events { type \
  ... on ResyncChange { reason } } } }"
)
PATIENCE = 90.0  # seconds, on a busy machine
RESTORE_EVENTS = [{"type": "RESYNC", "reason": "STORE_RESTORED"}]


@dataclass(frozen=True)
class ClientState:
    """What a client has read at one moment."""

    cursor: str
    validities: dict[str, int]
    link: str


async def read_state(client: HttpClient) -> ClientState:
    user = (await client(STATE_QUERY))["viewer"]["user"]
    validities = {mailbox["path"]: int(mailbox["uidValidity"]) for mailbox in user["mailboxes"]}
    (message,) = user["messages"]["nodes"]
    return ClientState(user["cursor"], validities, message["attachments"][0]["url"])


async def events_after(client: HttpClient, after: str) -> list[Any]:
    """Return the events of a page after a cursor."""
    return list((await client(CHANGES_QUERY, after=after))["changes"]["events"])


async def deliver(server: MerganserProcess, *subjects: str) -> None:
    for subject in subjects:
        reply = await server.deliver_by_lmtp(
            message_with_subject(subject, attachment_size=9000), "ada@example.org"
        )
        assert reply.startswith("250"), reply


async def wait_for_incarnation_mark(server: MerganserProcess) -> None:
    """Wait until an incarnation mark covers the streams of all users."""
    async with server.environment() as environment:
        query = select(col(Stream.id), col(Stream.last)).join(User, col(User.id) == Stream.id)
        positions = {row.id: row.last for row in await environment.database.read(query)}
        async with asyncio.timeout(PATIENCE):
            marked_positions = dict[int, int]()
            while not positions.items() <= marked_positions.items():
                await asyncio.sleep(0.05)
                marked_positions = (
                    dict(mark.streams) if (mark := await read_mark(environment)) else {}
                )


async def wait_for_new_incarnation(server: MerganserProcess) -> None:
    """Wait until a running server has begun a new incarnation."""
    async with asyncio.timeout(PATIENCE):
        while CHANGES_LOST not in server.log:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0.05)


async def run_backup_and_changes(
    server: MerganserProcess, backup: Callable[[], None]
) -> tuple[ClientState, ClientState]:
    """Deliver mail, back up, deliver more. Return the client state before and after the backup."""
    await deliver(server, "one", "two")
    async with server.open_client("ada") as client:
        state_before = await read_state(client)
        await wait_for_incarnation_mark(server)
        await asyncio.to_thread(backup)
        await deliver(server, "lost 1", "lost 2", "lost 3")
        return state_before, await read_state(client)


async def assert_clients_must_resync(
    server: MerganserProcess, before: ClientState, after: ClientState
) -> None:
    """Assert that cursors, UIDVALIDITY and links from before the restore are invalid."""
    await deliver(server, *(f"new {number}" for number in range(5)))
    async with (
        server.open_client("ada") as client,
        httpx.AsyncClient(base_url=server.url) as anonymous,
    ):
        current = await read_state(client)
        for old_state in (before, after):
            assert await events_after(client, old_state.cursor) == RESTORE_EVENTS
            assert not set(old_state.validities.values()) & set(current.validities.values())
            assert (await anonymous.get(url_path(old_state.link))).status_code == 401
        assert (await anonymous.get(url_path(current.link))).status_code == 200
        assert await events_after(client, current.cursor) == []
        await deliver(server, "later")
        assert {event["type"] for event in await events_after(client, current.cursor)} >= {
            "MESSAGE_RECEIVED"
        }
        async with client.subscribe_by_sse(CHANGES_SUBSCRIPTION, after=after.cursor) as events:
            payload = await events.read_event()
            assert payload["data"]["changes"]["events"] == RESTORE_EVENTS


async def assert_clients_can_continue(server: MerganserProcess, client_state: ClientState) -> None:
    """Assert that all that a client knows is still valid."""
    async with server.open_client("ada") as client:
        current = await read_state(client)
        assert current.validities == client_state.validities
        assert current.cursor == client_state.cursor
        assert await events_after(client, client_state.cursor) == []
        await deliver(server, "next")
        assert {event["type"] for event in await events_after(client, client_state.cursor)} >= {
            "MESSAGE_RECEIVED"
        }


def url_path(link: str) -> str:
    return "/" + link.split("/", 3)[3] if "://" in link else link


@pytest.fixture
def sqlite_server(tmp_path: Path) -> Iterator[MerganserProcess]:
    """A started SQLite server with one user."""
    server = MerganserProcess(tmp_path)
    server.create_users("ada")
    server.start()
    yield server
    with contextlib.suppress(AssertionError):
        server.kill()


def data_folder(sqlite_server: MerganserProcess) -> Path:
    return sqlite_server.folder / "var"


def remove_database(sqlite_server: MerganserProcess) -> None:
    for path in data_folder(sqlite_server).glob("merganser.db*"):
        path.unlink()


@pytest.mark.parametrize("end_method", ["stop", "kill"])
def test_documented_restore_is_detected(
    sqlite_server: MerganserProcess, end_method: str, tmp_path: Path
) -> None:
    copy = tmp_path / "backup.db"

    def backup() -> None:
        with contextlib.closing(
            sqlite3.connect(data_folder(sqlite_server) / "merganser.db")
        ) as database:
            database.execute("VACUUM INTO ?", (str(copy),))

    async def run_history() -> tuple[ClientState, ClientState]:
        client_state = await run_backup_and_changes(sqlite_server, backup)
        if end_method == "kill":
            await wait_for_incarnation_mark(sqlite_server)
        return client_state

    before, after = store_fixtures.run_in_new_loop(run_history())
    getattr(sqlite_server, end_method)()
    remove_database(sqlite_server)
    shutil.copy(copy, data_folder(sqlite_server) / "merganser.db")
    sqlite_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(sqlite_server, before, after))
    sqlite_server.stop()
    check = sqlite_server.run_command("check")
    assert check.exit_code == 0, check.stdout


def test_restored_database_file_is_detected(
    sqlite_server: MerganserProcess, tmp_path: Path
) -> None:
    async def deliver_and_read_state() -> ClientState:
        await deliver(sqlite_server, "one", "two")
        async with sqlite_server.open_client("ada") as client:
            return await read_state(client)

    before = store_fixtures.run_in_new_loop(deliver_and_read_state())
    sqlite_server.stop()
    shutil.copy(data_folder(sqlite_server) / "merganser.db", tmp_path / "copy.db")
    sqlite_server.start()

    async def deliver_lost_messages() -> ClientState:
        await deliver(sqlite_server, "lost 1", "lost 2")
        async with sqlite_server.open_client("ada") as client:
            return await read_state(client)

    after = store_fixtures.run_in_new_loop(deliver_lost_messages())
    sqlite_server.stop()
    remove_database(sqlite_server)
    shutil.copy(tmp_path / "copy.db", data_folder(sqlite_server) / "merganser.db")
    sqlite_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(sqlite_server, before, after))


@pytest.mark.parametrize("end_method", ["stop", "kill"])
def test_restart_keeps_incarnation(sqlite_server: MerganserProcess, end_method: str) -> None:
    async def deliver_and_read_state() -> ClientState:
        await deliver(sqlite_server, "one")
        async with sqlite_server.open_client("ada") as client:
            return await read_state(client)

    client_state = store_fixtures.run_in_new_loop(deliver_and_read_state())
    getattr(sqlite_server, end_method)()
    sqlite_server.start()
    store_fixtures.run_in_new_loop(assert_clients_can_continue(sqlite_server, client_state))


def test_restore_is_detected_by_several_processes(
    sqlite_server: MerganserProcess, tmp_path: Path
) -> None:
    sqlite_server.stop()
    sqlite_server.serve_arguments = ("--workers", "2")
    sqlite_server.start()
    copy = tmp_path / "backup.db"

    def backup() -> None:
        with contextlib.closing(
            sqlite3.connect(data_folder(sqlite_server) / "merganser.db")
        ) as database:
            database.execute("VACUUM INTO ?", (str(copy),))

    before, after = store_fixtures.run_in_new_loop(run_backup_and_changes(sqlite_server, backup))
    sqlite_server.stop()
    remove_database(sqlite_server)
    shutil.copy(copy, data_folder(sqlite_server) / "merganser.db")
    sqlite_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(sqlite_server, before, after))


def test_complete_restore_is_announced_by_command(
    sqlite_server: MerganserProcess, tmp_path: Path
) -> None:
    async def deliver_and_read_state(*subjects: str) -> ClientState:
        await deliver(sqlite_server, *subjects)
        async with sqlite_server.open_client("ada") as client:
            return await read_state(client)

    before = store_fixtures.run_in_new_loop(deliver_and_read_state("one"))
    sqlite_server.stop()
    shutil.copytree(data_folder(sqlite_server), tmp_path / "copy")
    sqlite_server.start()
    after = store_fixtures.run_in_new_loop(deliver_and_read_state("lost 1", "lost 2"))
    refused_check = sqlite_server.run_command("check", "--restored", "--quick")
    assert refused_check.exit_code != 0
    assert "stop" in refused_check.stderr
    sqlite_server.stop()
    shutil.rmtree(data_folder(sqlite_server))
    shutil.copytree(tmp_path / "copy", data_folder(sqlite_server))
    check = sqlite_server.run_command("check", "--restored", "--quick")
    assert check.exit_code == 0, check.stdout + check.stderr
    sqlite_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(sqlite_server, before, after))


def test_missing_incarnation_mark_begins_new_incarnation(sqlite_server: MerganserProcess) -> None:
    async def deliver_and_read_state() -> ClientState:
        await deliver(sqlite_server, "one")
        async with sqlite_server.open_client("ada") as client:
            return await read_state(client)

    client_state = store_fixtures.run_in_new_loop(deliver_and_read_state())
    sqlite_server.stop()
    (data_folder(sqlite_server) / "blobs" / MARK_OBJECT_NAME).unlink()
    sqlite_server.start()
    store_fixtures.run_in_new_loop(
        assert_clients_must_resync(sqlite_server, client_state, client_state)
    )


def documented_commands(kind: str) -> str:
    """Return the commands of a block in docs/operating.md."""
    page = (ROOT / "docs" / "operating.md").read_text()
    (commands,) = re.findall(rf"^```sh {kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(commands)


def run_documented_commands(kind: str, server: MerganserProcess) -> None:
    """Run these commands as printed, beside the data folder, with the usual umask."""
    bin_folder = server.folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    command = bin_folder / "merganser"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m merganser "$@"\n')
    command.chmod(0o700)
    env = {
        **server.process_env,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.run(
        ["/bin/sh", "-eu", "-c", f"umask 022\n{documented_commands(kind)}"],
        cwd=server.folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def readable_by_others(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]


def test_documented_backup_is_private_and_restores_a_new_machine(
    sqlite_server: MerganserProcess,
) -> None:
    def backup() -> None:
        for _ in range(2):  # the second backup replaces the first
            run_documented_commands("backup", sqlite_server)

    store_fixtures.run_in_new_loop(deliver(sqlite_server, "old"))
    before, after = store_fixtures.run_in_new_loop(run_backup_and_changes(sqlite_server, backup))
    sqlite_server.stop()
    copies = [sqlite_server.folder / name for name in ("backup", "keys")]
    assert [readable_by_others(copy) for copy in copies] == [[], []]
    shutil.rmtree(data_folder(sqlite_server))
    run_documented_commands("restore", sqlite_server)
    assert readable_by_others(data_folder(sqlite_server)) == []
    sqlite_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(sqlite_server, before, after))
    sqlite_server.stop()
    check = sqlite_server.run_command("check")
    assert check.exit_code == 0, check.stdout


@pytest.fixture
def primary() -> Iterator[PostgresTestCluster]:
    if "postgres" not in store_fixtures.STORES:
        pytest.skip("STORES has no postgres")
    started_cluster = PostgresTestCluster().initialize().start()
    yield started_cluster
    started_cluster.remove()


@pytest.fixture
def second_cluster() -> Iterator[PostgresTestCluster]:
    """An empty cluster for a restore or a standby."""
    empty_cluster = PostgresTestCluster()
    yield empty_cluster
    empty_cluster.remove()


@pytest.fixture
def postgres_server(primary: PostgresTestCluster, tmp_path: Path) -> Iterator[MerganserProcess]:
    server = MerganserProcess(tmp_path, primary.store_url)
    server.create_users("ada")
    server.start()
    yield server
    with contextlib.suppress(AssertionError):
        server.kill()


def test_pg_restore_is_detected(
    postgres_server: MerganserProcess, primary: PostgresTestCluster
) -> None:
    dump = primary.home / "dump"
    before, after = store_fixtures.run_in_new_loop(
        run_backup_and_changes(
            postgres_server,
            lambda: discard(primary.run_program("pg_dump", "-Fc", "-f", dump, "postgres")),
        )
    )
    postgres_server.stop()
    primary.run_sql("CREATE DATABASE restored")
    primary.run_program("pg_restore", "-d", "restored", dump)
    postgres_server.store_url = primary.database_url("restored")
    postgres_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(postgres_server, before, after))


def test_complete_dump_and_restore_keeps_incarnation(
    postgres_server: MerganserProcess,
    primary: PostgresTestCluster,
    second_cluster: PostgresTestCluster,
) -> None:
    async def deliver_and_read_state() -> ClientState:
        await deliver(postgres_server, "one")
        async with postgres_server.open_client("ada") as client:
            return await read_state(client)

    client_state = store_fixtures.run_in_new_loop(deliver_and_read_state())
    postgres_server.stop()
    primary.run_program("pg_dump", "-Fc", "-f", primary.home / "dump", "postgres")
    second_cluster.initialize().start()
    second_cluster.run_program("pg_restore", "-d", "postgres", primary.home / "dump")
    postgres_server.store_url = second_cluster.store_url
    postgres_server.start()
    store_fixtures.run_in_new_loop(assert_clients_can_continue(postgres_server, client_state))


def test_dump_of_killed_server_begins_new_incarnation_in_other_cluster(
    postgres_server: MerganserProcess,
    primary: PostgresTestCluster,
    second_cluster: PostgresTestCluster,
) -> None:
    async def deliver_and_read_state() -> ClientState:
        await deliver(postgres_server, "one")
        async with postgres_server.open_client("ada") as client:
            return await read_state(client)

    client_state = store_fixtures.run_in_new_loop(deliver_and_read_state())
    postgres_server.kill()
    primary.run_program("pg_dump", "-Fc", "-f", primary.home / "dump", "postgres")
    second_cluster.initialize().start()
    second_cluster.run_program("pg_restore", "-d", "postgres", primary.home / "dump")
    postgres_server.store_url = second_cluster.store_url
    postgres_server.start()
    store_fixtures.run_in_new_loop(
        assert_clients_must_resync(postgres_server, client_state, client_state)
    )


@pytest.mark.parametrize("point_in_time", [False, True])
def test_pg_basebackup_is_detected(
    postgres_server: MerganserProcess,
    primary: PostgresTestCluster,
    second_cluster: PostgresTestCluster,
    point_in_time: bool,
) -> None:
    def backup() -> None:
        primary.copy_to(second_cluster)
        if point_in_time:
            primary.run_sql("SELECT pg_create_restore_point('here')")

    before, after = store_fixtures.run_in_new_loop(run_backup_and_changes(postgres_server, backup))
    postgres_server.stop()
    primary.run_sql("SELECT pg_switch_wal()")
    primary.stop()
    if point_in_time:
        assert primary.archive
        second_cluster.configure_recovery(primary.archive, "recovery_target_name = 'here'")
    second_cluster.start()
    postgres_server.store_url = second_cluster.store_url
    postgres_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(postgres_server, before, after))


@pytest.mark.parametrize("end_method", ["stop", "kill"])
def test_failover_to_complete_standby_keeps_incarnation(
    postgres_server: MerganserProcess,
    primary: PostgresTestCluster,
    second_cluster: PostgresTestCluster,
    end_method: str,
) -> None:
    primary.copy_to(second_cluster, "-R")
    second_cluster.start()

    async def deliver_and_read_state() -> ClientState:
        await deliver(postgres_server, "one", "two")
        async with postgres_server.open_client("ada") as client:
            return await read_state(client)

    client_state = store_fixtures.run_in_new_loop(deliver_and_read_state())
    getattr(postgres_server, end_method)()
    wait_for_standby(primary, second_cluster)
    primary.stop("immediate")
    second_cluster.run_program("pg_ctl", "-w", "-D", second_cluster.data, "promote")
    postgres_server.store_url = second_cluster.store_url
    postgres_server.start()
    store_fixtures.run_in_new_loop(assert_clients_can_continue(postgres_server, client_state))


@pytest.mark.parametrize("loses_commits", [False, True])
def test_failover_under_running_server_is_detected_if_commits_are_lost(
    postgres_server: MerganserProcess,
    primary: PostgresTestCluster,
    second_cluster: PostgresTestCluster,
    loses_commits: bool,
) -> None:
    """The server keeps its database URL. The standby replaces the primary behind it."""
    primary.copy_to(second_cluster, "-R")
    second_cluster.start()

    async def deliver_and_read_state() -> ClientState:
        await deliver(postgres_server, "one", "two")
        wait_for_standby(primary, second_cluster)
        if loses_commits:
            second_cluster.stop()
            await deliver(postgres_server, "lost 1", "lost 2")
        async with postgres_server.open_client("ada") as client:
            return await read_state(client)

    client_state = store_fixtures.run_in_new_loop(deliver_and_read_state())
    if not loses_commits:
        wait_for_standby(primary, second_cluster)
    primary.stop("immediate")
    shutil.rmtree(primary.data)
    if loses_commits:
        (second_cluster.data / "standby.signal").unlink()
    else:
        second_cluster.run_program("pg_ctl", "-w", "-D", second_cluster.data, "promote")
        second_cluster.stop()
    shutil.copytree(second_cluster.data, primary.data, symlinks=True)
    primary.take_ownership()
    primary.start()
    if loses_commits:
        store_fixtures.run_in_new_loop(wait_for_new_incarnation(postgres_server))
        store_fixtures.run_in_new_loop(
            assert_clients_must_resync(postgres_server, client_state, client_state)
        )
    else:
        time.sleep(2 * CHECK_INTERVAL + 1)  # until the server has checked the database
        store_fixtures.run_in_new_loop(assert_clients_can_continue(postgres_server, client_state))


def wait_for_standby(primary: PostgresTestCluster, second_cluster: PostgresTestCluster) -> None:
    """Wait until the standby has replayed all changes of the primary."""
    position = primary.run_sql("SELECT pg_current_wal_lsn()")
    for _ in range(600):
        if second_cluster.run_sql(f"SELECT pg_last_wal_replay_lsn() >= '{position}'") == "t":
            return
    raise AssertionError("the standby lags behind")


def discard(_: object) -> None:
    """Discard a value."""

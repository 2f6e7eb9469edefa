"""Real restores: clients with cursors, UIDs and links of the lost history are told so."""

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
from tests.support.accounts.account_rows import letter
from tests.support.servers.merganser_server import ROOT, Client, Server
from tests.support.servers.postgres_cluster import Cluster
from tests.support.stores import store_fixtures

CHANGES = """query ($after: Cursor!) { changes(after: $after) { cursor events { kind
  ... on ResyncChange { reason } ... on MessageChange { messageId } } } }"""
STATE = """{ viewer { user { cursor
  mailboxes { path uidValidity }
  messages(first: 1) { nodes { attachments { url } } } } } }"""
FOLLOW = "subscription ($after: Cursor) { changes(after: $after) { cursor events { kind \
  ... on ResyncChange { reason } } } }"
PATIENCE = 90.0  # seconds, on a busy machine
RESTORED = [{"kind": "RESYNC", "reason": "STORE_RESTORED"}]


@dataclass(frozen=True)
class Seen:
    """What a client has seen at one moment."""

    cursor: str
    validities: dict[str, int]
    link: str


async def look(client: Client) -> Seen:
    user = (await client(STATE))["viewer"]["user"]
    boxes = {box["path"]: int(box["uidValidity"]) for box in user["mailboxes"]}
    (message,) = user["messages"]["nodes"]
    return Seen(user["cursor"], boxes, message["attachments"][0]["url"])


async def missed(client: Client, after: str) -> list[Any]:
    """The events of a page after a cursor."""
    return list((await client(CHANGES, after=after))["changes"]["events"])


async def deliver(server: Server, *subjects: str) -> None:
    for subject in subjects:
        answer = await server.deliver(letter(subject, attached=9000), "ada@example.org")
        assert answer.startswith("250"), answer


async def marked(server: Server) -> None:
    """Wait until a mark was written that tells of all that the users have."""
    async with server.world() as world:
        asked = select(col(Stream.id), col(Stream.last)).join(User, col(User.id) == Stream.id)
        wanted = {row.id: row.last for row in await world.database.read(asked)}
        async with asyncio.timeout(PATIENCE):
            known = dict[int, int]()
            while not wanted.items() <= known.items():
                await asyncio.sleep(0.05)
                known = dict(mark.streams) if (mark := await read_mark(world)) else {}


async def begun_anew(server: Server) -> None:
    """Wait until a server that runs has begun a new incarnation."""
    async with asyncio.timeout(PATIENCE):
        while CHANGES_LOST not in server.log:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0.05)


async def history(server: Server, backup: Callable[[], None]) -> tuple[Seen, Seen]:
    """Live through a backup and what comes after it; what a client sees before and after it."""
    await deliver(server, "one", "two")
    async with server.client("ada") as client:
        before = await look(client)
        await marked(server)
        await asyncio.to_thread(backup)
        await deliver(server, "lost 1", "lost 2", "lost 3")
        return before, await look(client)


async def told(server: Server, before: Seen, after: Seen) -> None:
    """Both clients must be asked to read their state again, also when the numbers overtake."""
    await deliver(server, *(f"new {nth}" for nth in range(5)))
    async with server.client("ada") as client, httpx.AsyncClient(base_url=server.url) as stranger:
        now = await look(client)
        for seen in (before, after):
            assert await missed(client, seen.cursor) == RESTORED
            assert not set(seen.validities.values()) & set(now.validities.values())
            assert (await stranger.get(path_of(seen.link))).status_code == 401
        assert (await stranger.get(path_of(now.link))).status_code == 200
        assert await missed(client, now.cursor) == []
        await deliver(server, "later")
        assert {event["kind"] for event in await missed(client, now.cursor)} >= {"MESSAGE_ADDED"}
        async with client.stream(FOLLOW, after=after.cursor) as events:
            payload = await events.hear()
            assert payload["data"]["changes"]["events"] == RESTORED


async def untold(server: Server, seen: Seen) -> None:
    """Nothing was lost, so everything that a client knows is still good."""
    async with server.client("ada") as client:
        now = await look(client)
        assert now.validities == seen.validities
        assert now.cursor == seen.cursor
        assert await missed(client, seen.cursor) == []
        await deliver(server, "next")
        assert {event["kind"] for event in await missed(client, seen.cursor)} >= {"MESSAGE_ADDED"}


def path_of(link: str) -> str:
    return "/" + link.split("/", 3)[3] if "://" in link else link


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Server]:
    """A server on SQLite with one user, started."""
    made = Server(tmp_path)
    made.make("ada")
    made.start()
    yield made
    with contextlib.suppress(AssertionError):
        made.kill()


def var(alone: Server) -> Path:
    return alone.folder / "var"


def remove_database(alone: Server) -> None:
    for path in var(alone).glob("merganser.db*"):
        path.unlink()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_documented_restore_is_detected(alone: Server, end: str, tmp_path: Path) -> None:
    copy = tmp_path / "backup.db"

    def backup() -> None:
        with contextlib.closing(sqlite3.connect(var(alone) / "merganser.db")) as database:
            database.execute("VACUUM INTO ?", (str(copy),))

    async def live() -> tuple[Seen, Seen]:
        seen = await history(alone, backup)
        if end == "kill":
            await marked(alone)
        return seen

    before, after = store_fixtures.run(live())
    getattr(alone, end)()
    remove_database(alone)
    shutil.copy(copy, var(alone) / "merganser.db")
    alone.start()
    store_fixtures.run(told(alone, before, after))
    alone.stop()
    check = alone.command("check")
    assert check.code == 0, check.out


def test_a_copied_file_is_detected(alone: Server, tmp_path: Path) -> None:
    async def live() -> Seen:
        await deliver(alone, "one", "two")
        async with alone.client("ada") as client:
            return await look(client)

    before = store_fixtures.run(live())
    alone.stop()
    shutil.copy(var(alone) / "merganser.db", tmp_path / "copy.db")
    alone.start()

    async def more() -> Seen:
        await deliver(alone, "lost 1", "lost 2")
        async with alone.client("ada") as client:
            return await look(client)

    after = store_fixtures.run(more())
    alone.stop()
    remove_database(alone)
    shutil.copy(tmp_path / "copy.db", var(alone) / "merganser.db")
    alone.start()
    store_fixtures.run(told(alone, before, after))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_changes_nothing(alone: Server, end: str) -> None:
    async def live() -> Seen:
        await deliver(alone, "one")
        async with alone.client("ada") as client:
            return await look(client)

    seen = store_fixtures.run(live())
    getattr(alone, end)()
    alone.start()
    store_fixtures.run(untold(alone, seen))


def test_several_processes_detect_a_restore(alone: Server, tmp_path: Path) -> None:
    alone.stop()
    alone.words = ("--workers", "2")
    alone.start()
    copy = tmp_path / "backup.db"

    def backup() -> None:
        with contextlib.closing(sqlite3.connect(var(alone) / "merganser.db")) as database:
            database.execute("VACUUM INTO ?", (str(copy),))

    before, after = store_fixtures.run(history(alone, backup))
    alone.stop()
    remove_database(alone)
    shutil.copy(copy, var(alone) / "merganser.db")
    alone.start()
    store_fixtures.run(told(alone, before, after))


def test_a_restore_of_everything_is_told_by_a_command(alone: Server, tmp_path: Path) -> None:
    async def live(*subjects: str) -> Seen:
        await deliver(alone, *subjects)
        async with alone.client("ada") as client:
            return await look(client)

    before = store_fixtures.run(live("one"))
    alone.stop()
    shutil.copytree(var(alone), tmp_path / "copy")
    alone.start()
    after = store_fixtures.run(live("lost 1", "lost 2"))
    refused = alone.command("check", "--restored", "--quick")
    assert refused.code != 0
    assert "stop" in refused.err
    alone.stop()
    shutil.rmtree(var(alone))
    shutil.copytree(tmp_path / "copy", var(alone))
    done = alone.command("check", "--restored", "--quick")
    assert done.code == 0, done.out + done.err
    alone.start()
    store_fixtures.run(told(alone, before, after))


def test_objects_without_a_mark_begin_a_new_incarnation(alone: Server) -> None:
    async def live() -> Seen:
        await deliver(alone, "one")
        async with alone.client("ada") as client:
            return await look(client)

    seen = store_fixtures.run(live())
    alone.stop()
    (var(alone) / "blobs" / MARK_OBJECT_NAME).unlink()
    alone.start()
    store_fixtures.run(told(alone, seen, seen))


def documented(kind: str) -> str:
    """The commands of a block in docs/operating.md."""
    page = (ROOT / "docs" / "operating.md").read_text()
    (found,) = re.findall(rf"^```sh {kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(found)


def run_documented(kind: str, server: Server) -> None:
    """Run these commands as they are written, beside the data folder, with a usual umask."""
    ours = server.folder / "bin"
    ours.mkdir(exist_ok=True)
    command = ours / "merganser"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m merganser "$@"\n')
    command.chmod(0o700)
    env = {**server.env, "PATH": f"{ours}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["/bin/sh", "-eu", "-c", f"umask 022\n{documented(kind)}"],
        cwd=server.folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def readable_by_others(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]


def test_the_documented_backup_is_private_and_enough_for_a_new_machine(alone: Server) -> None:
    def backup() -> None:
        for _ in range(2):  # the second replaces the first
            run_documented("backup", alone)

    store_fixtures.run(deliver(alone, "old"))
    before, after = store_fixtures.run(history(alone, backup))
    alone.stop()
    copies = [alone.folder / name for name in ("backup", "keys")]
    assert [readable_by_others(copy) for copy in copies] == [[], []]
    shutil.rmtree(var(alone))
    run_documented("restore", alone)
    assert readable_by_others(var(alone)) == []
    alone.start()
    store_fixtures.run(told(alone, before, after))
    alone.stop()
    check = alone.command("check")
    assert check.code == 0, check.out


# ---------------------------------------------------------------- PostgreSQL


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if "postgres" not in store_fixtures.STORES:
        pytest.skip("STORES has no postgres")
    made = Cluster().make().start()
    yield made
    made.remove()


@pytest.fixture
def other() -> Iterator[Cluster]:
    """An empty place for a restored cluster."""
    made = Cluster()
    yield made
    made.remove()


@pytest.fixture
def on_postgres(cluster: Cluster, tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, cluster.store)
    made.make("ada")
    made.start()
    yield made
    with contextlib.suppress(AssertionError):
        made.kill()


def test_pg_restore_is_detected(on_postgres: Server, cluster: Cluster) -> None:
    dump = cluster.home / "dump"
    before, after = store_fixtures.run(
        history(on_postgres, lambda: void(cluster.run("pg_dump", "-Fc", "-f", dump, "postgres")))
    )
    on_postgres.stop()
    cluster.sql("CREATE DATABASE restored")
    cluster.run("pg_restore", "-d", "restored", dump)
    on_postgres.store = cluster.store_of("restored")
    on_postgres.start()
    store_fixtures.run(told(on_postgres, before, after))


def test_a_dump_and_restore_that_lost_nothing_changes_nothing(
    on_postgres: Server, cluster: Cluster, other: Cluster
) -> None:
    async def live() -> Seen:
        await deliver(on_postgres, "one")
        async with on_postgres.client("ada") as client:
            return await look(client)

    seen = store_fixtures.run(live())
    on_postgres.stop()
    cluster.run("pg_dump", "-Fc", "-f", cluster.home / "dump", "postgres")
    other.make().start()
    other.run("pg_restore", "-d", "postgres", cluster.home / "dump")
    on_postgres.store = other.store
    on_postgres.start()
    store_fixtures.run(untold(on_postgres, seen))


def test_a_dump_of_a_server_that_was_killed_begins_a_new_incarnation_in_another_cluster(
    on_postgres: Server, cluster: Cluster, other: Cluster
) -> None:
    async def live() -> Seen:
        await deliver(on_postgres, "one")
        async with on_postgres.client("ada") as client:
            return await look(client)

    seen = store_fixtures.run(live())
    on_postgres.kill()
    cluster.run("pg_dump", "-Fc", "-f", cluster.home / "dump", "postgres")
    other.make().start()
    other.run("pg_restore", "-d", "postgres", cluster.home / "dump")
    on_postgres.store = other.store
    on_postgres.start()
    store_fixtures.run(told(on_postgres, seen, seen))


@pytest.mark.parametrize("point_in_time", [False, True])
def test_pg_basebackup_is_detected(
    on_postgres: Server, cluster: Cluster, other: Cluster, point_in_time: bool
) -> None:
    def backup() -> None:
        cluster.copy_to(other)
        if point_in_time:
            cluster.sql("SELECT pg_create_restore_point('here')")

    before, after = store_fixtures.run(history(on_postgres, backup))
    on_postgres.stop()
    cluster.sql("SELECT pg_switch_wal()")
    cluster.stop()
    if point_in_time:
        assert cluster.archive
        other.recover(cluster.archive, "recovery_target_name = 'here'")
    other.start()
    on_postgres.store = other.store
    on_postgres.start()
    store_fixtures.run(told(on_postgres, before, after))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_failover_to_a_standby_that_lost_nothing_changes_nothing(
    on_postgres: Server, cluster: Cluster, other: Cluster, end: str
) -> None:
    cluster.copy_to(other, "-R")
    other.start()

    async def live() -> Seen:
        await deliver(on_postgres, "one", "two")
        async with on_postgres.client("ada") as client:
            return await look(client)

    seen = store_fixtures.run(live())
    getattr(on_postgres, end)()
    caught_up(cluster, other)
    cluster.stop("immediate")
    other.run("pg_ctl", "-w", "-D", other.data, "promote")
    on_postgres.store = other.store
    on_postgres.start()
    store_fixtures.run(untold(on_postgres, seen))


@pytest.mark.parametrize("lost", [False, True])
def test_a_failover_under_a_running_server(
    on_postgres: Server, cluster: Cluster, other: Cluster, lost: bool
) -> None:
    """The server keeps its address; behind it the standby takes the place of the primary."""
    cluster.copy_to(other, "-R")
    other.start()

    async def live() -> Seen:
        await deliver(on_postgres, "one", "two")
        caught_up(cluster, other)
        if lost:
            other.stop()
            await deliver(on_postgres, "lost 1", "lost 2")
        async with on_postgres.client("ada") as client:
            return await look(client)

    seen = store_fixtures.run(live())
    if not lost:
        caught_up(cluster, other)
    cluster.stop("immediate")
    shutil.rmtree(cluster.data)
    if lost:
        (other.data / "standby.signal").unlink()
    else:
        other.run("pg_ctl", "-w", "-D", other.data, "promote")
        other.stop()
    shutil.copytree(other.data, cluster.data, symlinks=True)
    cluster.own()
    cluster.start()
    if lost:
        store_fixtures.run(begun_anew(on_postgres))
        store_fixtures.run(told(on_postgres, seen, seen))
    else:
        time.sleep(2 * CHECK_INTERVAL + 1)  # until it has looked at the database
        store_fixtures.run(untold(on_postgres, seen))


def caught_up(cluster: Cluster, other: Cluster) -> None:
    """Wait until the standby has replayed all that the primary has."""
    there = cluster.sql("SELECT pg_current_wal_lsn()")
    for _ in range(600):
        if other.sql(f"SELECT pg_last_wal_replay_lsn() >= '{there}'") == "t":
            return
    raise AssertionError("the standby lags behind")


def void(_: object) -> None:
    """Drop a value."""

"""Restores of PostgreSQL by dump, base backup and failover."""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mail.maintenance.restore_mark import CHANGES_LOST, CHECK_INTERVAL
from tests.support.servers.merganser_server import ROOT, MerganserProcess
from tests.support.servers.postgres_cluster import PostgresTestCluster
from tests.support.stores import store_fixtures
from tests.support.stores.restored_clients import (
    PATIENCE,
    ClientState,
    assert_clients_can_continue,
    assert_clients_must_resync,
    deliver,
    read_state,
    run_backup_and_changes,
)

MESSAGES_SQL = "SELECT id, sha256 FROM messages ORDER BY id"


async def wait_for_new_incarnation(server: MerganserProcess) -> None:
    """Wait until a running server has begun a new incarnation."""
    async with asyncio.timeout(PATIENCE):
        while CHANGES_LOST not in server.log:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0.05)


def start_new_cluster() -> PostgresTestCluster:
    """Start a new cluster. Skips the test if the run has no PostgreSQL."""
    if "postgres" not in store_fixtures.STORES:
        pytest.skip("STORES has no postgres")
    return PostgresTestCluster().initialize().start()


@dataclass(frozen=True)
class PreparedStore:
    """A stopped cluster with one user, and the server that has created the user."""

    cluster: PostgresTestCluster
    server: MerganserProcess


@pytest.fixture(scope="module")
def prepared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreparedStore]:
    """The store that each test copies."""
    cluster = start_new_cluster()
    server = MerganserProcess(tmp_path_factory.mktemp("prepared"), cluster.store_url)
    server.create_users("ada")
    cluster.stop()
    yield PreparedStore(cluster, server)
    cluster.remove()


@pytest.fixture
def primary(prepared_store: PreparedStore) -> Iterator[PostgresTestCluster]:
    started_cluster = prepared_store.cluster.copy().start()
    yield started_cluster
    started_cluster.remove()


@pytest.fixture
def second_cluster() -> Iterator[PostgresTestCluster]:
    """An empty cluster for a restore or a standby."""
    empty_cluster = PostgresTestCluster()
    yield empty_cluster
    empty_cluster.remove()


@pytest.fixture
def postgres_server(
    prepared_store: PreparedStore, primary: PostgresTestCluster, tmp_path: Path
) -> Iterator[MerganserProcess]:
    shutil.copytree(prepared_store.server.folder, tmp_path, dirs_exist_ok=True)
    server = MerganserProcess(tmp_path, primary.store_url, secrets=prepared_store.server.secrets)
    server.start()
    yield server
    with contextlib.suppress(AssertionError):
        server.kill()


def restore_dump(
    source: PostgresTestCluster, source_database: str, target: PostgresTestCluster, database: str
) -> str:
    """Dump a database, and restore it as a new one; return the URL of the new one."""
    dump = source.home / f"dump_for_{database}"
    source.run_program("pg_dump", "-Fc", "-f", dump, source_database)
    return restore_dump_file(dump, target, database)


def restore_dump_file(dump: Path, target: PostgresTestCluster, database: str) -> str:
    """Restore a dump as a new database, and return its URL."""
    target.run_sql(f"CREATE DATABASE {database}")
    target.run_program("pg_restore", "-d", database, dump)
    return target.database_url(database)


def test_restored_dump_begins_new_incarnation_unless_it_is_of_a_stopped_server(
    postgres_server: MerganserProcess,
    primary: PostgresTestCluster,
    second_cluster: PostgresTestCluster,
) -> None:
    """The same server is dumped while it runs, after a stop, and after it was killed."""
    dump = primary.home / "dump"
    before, after = store_fixtures.run_in_new_loop(
        run_backup_and_changes(
            postgres_server,
            lambda: discard(primary.run_program("pg_dump", "-Fc", "-f", dump, "postgres")),
        )
    )
    postgres_server.stop()
    postgres_server.store_url = restore_dump_file(dump, primary, "of_running_server")
    postgres_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(postgres_server, before, after))

    async def read_current_state() -> ClientState:
        async with postgres_server.open_client("ada") as client:
            return await read_state(client)

    client_state = store_fixtures.run_in_new_loop(read_current_state())
    postgres_server.stop()
    second_cluster.initialize().start()
    postgres_server.store_url = restore_dump(
        primary, "of_running_server", second_cluster, "of_stopped_server"
    )
    postgres_server.start()
    store_fixtures.run_in_new_loop(assert_clients_can_continue(postgres_server, client_state))

    client_state = store_fixtures.run_in_new_loop(read_current_state())
    postgres_server.kill()
    postgres_server.store_url = restore_dump(
        second_cluster, "of_stopped_server", primary, "of_killed_server"
    )
    postgres_server.start()
    store_fixtures.run_in_new_loop(
        assert_clients_must_resync(
            postgres_server, client_state, client_state, prefix="after the kill: "
        )
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


def documented_configuration(first_setting: str) -> str:
    """Return the lines of docs/operating/backup.md for postgresql.conf, by their first setting."""
    page = (ROOT / "docs" / "operating" / "backup.md").read_text()
    (lines,) = re.findall(rf"^```text\n({first_setting} .*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(lines)


def test_documented_restore_to_a_moment(
    postgres_server: MerganserProcess,
    primary: PostgresTestCluster,
    second_cluster: PostgresTestCluster,
) -> None:
    postgres_server.stop()
    primary.stop()
    archive = primary.home / "documented"
    archive.mkdir()
    archive.chmod(0o777)
    primary.configure(documented_configuration("archive_mode").replace("/mnt/wal", str(archive)))
    primary.start()
    postgres_server.start()
    moment, rows = "", ""

    def back_up_and_choose_moment() -> None:
        nonlocal moment, rows
        primary.copy_to(second_cluster)
        store_fixtures.run_in_new_loop(deliver(postgres_server, "after the base backup"))
        rows = primary.run_sql(MESSAGES_SQL)
        moment = primary.run_sql("SELECT clock_timestamp()")

    before, after = store_fixtures.run_in_new_loop(
        run_backup_and_changes(postgres_server, back_up_and_choose_moment)
    )
    postgres_server.stop()
    primary.run_sql("SELECT pg_switch_wal()")
    primary.stop()
    recovery = documented_configuration("restore_command").replace("/mnt/wal", str(archive))
    second_cluster.configure(
        re.sub(r"^(recovery_target_time) = .*$", rf"\1 = '{moment}'", recovery, flags=re.MULTILINE)
    )
    second_cluster.request_recovery()
    second_cluster.start()
    postgres_server.store_url = second_cluster.store_url
    assert second_cluster.run_sql(MESSAGES_SQL) == rows
    check = postgres_server.run_command("check")
    assert check.exit_code == 0, check.stdout + check.stderr
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

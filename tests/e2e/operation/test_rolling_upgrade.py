"""Upgrades under load, as docs/operating/upgrade.md describes them: no request fails for good.

Every acknowledged change is stored once, and every event is delivered once and in order.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from bench.change_stream import account_replica
from bench.cluster_soak import create_data_folder
from merganser.server.readiness import load_migration_versions
from merganser.server.store.migration import last_revision
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.database import Database
from models.users.tables import User
from tests.support.clients.platform_load import (
    RECEIVER,
    RECIPIENT,
    SETTINGS,
    USERS,
    PlatformLoad,
)
from tests.support.released import store_archive, upgrade_paths
from tests.support.servers.forked_process import fork_server
from tests.support.servers.merganser_server import ROOT, MerganserProcess
from tests.support.servers.server_versions import (
    NEXT_REVISION,
    create_users_by_commands,
    extract_released_source,
    make_next_version,
)
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_database

ANSWER_COUNT = 3  # of each kind and each server, in each phase


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This version with one more migration, which only adds to the tables."""
    folder = make_next_version(tmp_path_factory.mktemp("next"), last_revision())
    fork_server(folder)  # imports the version while the servers start
    return folder


@pytest.fixture(scope="module")
def replaceable_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest released version, if its servers can run beside this version; else this version.

    `tests/store/test_released_stores.py` fails in the second case, unless a reason is given there.
    """
    archive = store_archive.archive_paths()[-1]
    if upgrade_paths.revisions_that_stop_servers(archive):
        return ROOT
    return released_source(archive, tmp_path_factory)


@pytest.fixture(scope="module")
def version_to_stop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest released version whose servers must be stopped before an upgrade."""
    return released_source(upgrade_paths.newest_version_to_stop(), tmp_path_factory)


def released_source(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extract the source of a released version, and return its folder."""
    source_archive = store_archive.source_archive_path(archive)
    folder = extract_released_source(source_archive, tmp_path_factory.mktemp("released"))
    fork_server(folder)  # imports the version meanwhile
    return folder


@pytest.fixture(params=store_fixtures.STORES)
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[MerganserProcess]]:
    """Two servers on PostgreSQL, or one with two workers on SQLite; not started."""
    settings = {**SETTINGS, "OBJECT_STORE_URL": str(tmp_path / "objects")}
    if request.param == "sqlite":
        (tmp_path / "mx1").mkdir()
        servers = [
            MerganserProcess(tmp_path / "mx1", "", settings, serve_arguments=("--workers", "2"))
        ]
    else:
        store_url = create_database(request.getfixturevalue("postgres"), "upgrade")
        servers = []
        for name in ("mx1", "mx2"):
            (tmp_path / name).mkdir()
            servers.append(MerganserProcess(tmp_path / name, store_url, settings))
    yield servers
    for server in servers:
        if server.is_running:
            server.kill()


def share_keys(servers: list[MerganserProcess]) -> None:
    """Give all servers the keys and secrets of the first one."""
    first, *others = servers
    for server in others:
        create_data_folder(server.folder / "var", first.folder / "var")
        server.secrets = first.secrets


async def replace_server(server: MerganserProcess, source_folder: Path, load: PlatformLoad) -> None:
    """Stop a server, and start it with another version."""
    await asyncio.to_thread(server.stop)
    server.source_folder = source_folder
    await load.start(server)


async def assert_everything_is_stored_once(
    servers: list[MerganserProcess], load: PlatformLoad, revision: str
) -> None:
    """Compare the database of the stopped servers with what the clients know, and check it."""
    async with servers[0].environment() as environment:
        database = environment.database
        assert await stored_subjects(database, RECEIVER) == Counter(load.acknowledged.delivered)
        assert await stored_subjects(database, RECIPIENT) == Counter(load.acknowledged.sent)
        ((user_id,),) = await database.read(
            select(col(User.id)).where(col(User.username) == RECEIVER)
        )
        paths = select(col(Mailbox.path)).where(col(Mailbox.user_id) == user_id)
        created = [
            row.path for row in await database.read(paths) if row.path.startswith("Created ")
        ]
        assert Counter(created) == Counter(load.acknowledged.created)
        stored_state = await account_replica.read_account_state(database, user_id)
        assert await account_replica.find_journal_gaps(database, user_id) == []
        assert await load_migration_versions(database) == {revision}
    for server in servers:
        assert [record for record in server.log_records() if record["level"] == "error"] == []
    assert all(count > 1 for count in load.connections.values())
    for transport, replica in load.replicas.items():
        assert replica.problems == [], transport
        assert account_replica.differences_by_id(replica.account_state, stored_state) == {}
    checked = await asyncio.to_thread(servers[0].run_command, "check")
    assert checked.exit_code == 0, checked.stdout


async def stored_subjects(database: Database, username: str) -> Counter[str]:
    """Count the stored messages of a user by subject."""
    statement = select(col(Message.subject)).join(User, col(User.id) == col(Message.user_id))
    rows = await database.read(statement.where(col(User.username) == username))
    return Counter(row.subject for row in rows)


async def test_servers_are_replaced_one_after_the_other_and_back(
    servers: list[MerganserProcess], replaceable_version: Path, next_version: Path
) -> None:
    """The newer version adds to the tables; the older one runs beside it, and after it."""
    for server in servers:
        server.source_folder = replaceable_version
    create_users_by_commands(servers[0], *USERS)
    share_keys(servers)
    load = PlatformLoad(servers)
    async with load.run():
        await load.start(*servers)
        await load.wait_for_answers(servers, ANSWER_COUNT)
        for version in (next_version, replaceable_version):
            for server in servers:
                await replace_server(server, version, load)
                await load.wait_for_answers(servers, ANSWER_COUNT)
    for server in servers:
        server.stop()
    load.require_few_retries(stop_count=2 * len(servers))
    await assert_everything_is_stored_once(servers, load, NEXT_REVISION)


async def test_released_version_is_upgraded_with_all_servers_stopped(
    servers: list[MerganserProcess], version_to_stop: Path
) -> None:
    """The clients wait while no server runs, and find everything afterwards."""
    for server in servers:
        server.source_folder = version_to_stop
    create_users_by_commands(servers[0], *USERS)
    share_keys(servers)
    load = PlatformLoad(servers)
    async with load.run():
        await load.start(*servers)
        await load.wait_for_answers(servers, ANSWER_COUNT)
        for server in servers:
            await asyncio.to_thread(server.stop)
        for server in servers:
            server.source_folder = ROOT
        migrated = await asyncio.to_thread(servers[0].run_command, "init")
        assert migrated.exit_code == 0, migrated.stderr
        await load.start(*servers)
        await load.wait_for_answers(servers, ANSWER_COUNT)
    for server in servers:
        server.stop()
    load.require_few_retries(stop_count=len(servers))
    await assert_everything_is_stored_once(servers, load, last_revision())

"""Stores of released versions, opened in place with the current code."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from graphql import GraphQLEnumType
from sqlalchemy import String, column, select, table

from merganser.server.store.migration import last_revision, load_unapplied_revisions
from models.runtime.environment import Environment
from tests.conftest import raw_message
from tests.support.released import store_archive, store_queries, upgrade_paths
from tests.support.released.store_archive import DATA_FOLDER_NAME, StoreManifest
from tests.support.released.store_clients import StoreClient, deliver_by_lmtp, open_store_http
from tests.support.schema.printed_schema import SDL
from tests.support.servers.merganser_server import MerganserProcess

ARCHIVES = store_archive.archive_paths()
MAX_BYTES = 5 * 1024 * 1024  # of all files together
# Migrations since the newest archive, by revision, for which operators must stop all servers. The
# value says why the migration can't be made in the two steps of docs/architecture.md.
REASONS_TO_STOP_SERVERS: dict[str, str] = {}
MAILBOX_IDS = "{ viewer { user { mailboxes(first: 200) { nodes { id } } } } }"
MESSAGE_IDS = """query ($mailbox: ID!, $order: MessageOrder!) { node(id: $mailbox) {
  ... on Mailbox { messages(first: 200, orderBy: $order) { nodes { id } } } } }"""
QUEUED_ENTRIES = "{ viewer { user { submissions(first: 200) { nodes { queueId } } } } }"
RECEIVED_SUBJECTS = "{ viewer { user { messages(first: 200) { nodes { subject text } } } } }"


@dataclass(frozen=True)
class OpenedStore:
    """The environment of a released store after its migration, and clients of its accounts."""

    environment: Environment
    clients: dict[str, StoreClient]
    spool_folder: Path


def migrate_and_check(process: MerganserProcess) -> None:
    """Migrate the store with `merganser init`, and check it."""
    for command in ("init", "check"):
        output = process.run_command(command)
        assert output.exit_code == 0, (command, output.stdout, output.stderr)


@contextlib.asynccontextmanager
async def open_store(
    process: MerganserProcess, manifest: StoreManifest
) -> AsyncIterator[OpenedStore]:
    """Open the store an hour after its answers were read, so that nothing in it has expired."""
    spool_folder = process.folder / "spool"
    spool_folder.mkdir(exist_ok=True)
    async with (
        process.environment() as environment,
        open_store_http(environment, spool_folder) as http,
    ):
        opened_at = manifest.created_time + timedelta(hours=1)
        environment.clock.read = lambda: opened_at
        clients = {name: StoreClient(http, secret) for name, secret in manifest.secrets.items()}
        yield OpenedStore(environment, clients, spool_folder)


def test_released_stores_exist_and_are_small() -> None:
    assert ARCHIVES
    files = [path for path in store_archive.RELEASED_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_servers_of_newest_released_version_can_be_replaced_one_after_the_other() -> None:
    """Otherwise test_rolling_upgrade.py can't replace them, and has no older code to go back to."""
    assert upgrade_paths.revisions_that_stop_servers(ARCHIVES[-1]) == [*REASONS_TO_STOP_SERVERS], (
        "Operators must stop all servers for these migrations. Make them in two steps, or give a "
        "reason in REASONS_TO_STOP_SERVERS, and tell operators in CHANGELOG.md and upgrade.md."
    )


def test_migration_without_expand_only_stops_servers_of_older_versions() -> None:
    """The migration 0111 of the oldest archive only adds indexes, and 0112 needs new rows."""
    assert store_archive.archive_revision(ARCHIVES[0]) == "0110"
    assert upgrade_paths.revisions_that_stop_servers(ARCHIVES[0])[0] == "0112"


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
async def test_released_store_keeps_its_objects(archive: Path, tmp_path: Path) -> None:
    manifest = store_archive.extract_store_archive(archive, tmp_path)
    assert (tmp_path / DATA_FOLDER_NAME).is_dir()
    process = MerganserProcess(tmp_path)
    migrate_and_check(process)
    async with open_store(process, manifest) as store:
        assert await load_unapplied_revisions(store.environment.database) == []
        version = column("version_num", String)
        (row,) = await store.environment.database.read(
            select(version).select_from(table("alembic_version"))
        )
        assert row.version_num == last_revision()
        compared_answers = []
        for answer in manifest.answers:
            document = store_queries.document_of_existing_fields(answer.document, SDL)
            data = await store.clients[answer.caller].execute(document)
            expected = store_queries.comparable_answer(answer.data, data)
            assert store_queries.sorted_by_id(data) == expected, (answer.caller, document)
            compared_answers.append(expected)
        stored_answers = [answer.data for answer in manifest.answers]
        store_queries.require_most_values_compared(stored_answers, compared_answers)
        for name in [name for name in manifest.secrets if name != "root"]:
            await assert_orders_list_all_messages(store.clients[name], message_ids(manifest, name))


def test_comparison_of_too_few_values_fails() -> None:
    node = {"id": "1", "subject": "Hello"}
    stored = [{"nodes": [node] * 1_000}, {"nodes": [node]}, {"nodes": []}]
    require = store_queries.require_most_values_compared
    require(stored, stored)
    few_values = [{"nodes": [{"id": "1"}] * 1_000}, *stored[1:]]
    for compared in ([{}, *stored[1:]], [stored[0], {}, stored[2]], few_values):
        with pytest.raises(AssertionError):
            require(stored, compared)
    with pytest.raises(AssertionError):
        require(stored[1:], stored[1:])


def message_ids(manifest: StoreManifest, name: str) -> set[str]:
    """The IDs of all messages in the stored answers of an account."""
    users = [
        answer.data["viewer"]["user"]
        for answer in manifest.answers
        if answer.caller == name and "viewer" in answer.data
    ]
    return {
        node["id"] for user in users if "messages" in user for node in user["messages"]["nodes"]
    }


async def assert_orders_list_all_messages(client: StoreClient, expected: set[str]) -> None:
    """List the messages in each order that needs no search; migrations can add sort keys."""
    assert expected
    order_type = SDL.type_map["MessageOrder"]
    assert isinstance(order_type, GraphQLEnumType)
    mailboxes = await user_nodes(client, MAILBOX_IDS, "mailboxes")
    for order in order_type.values.keys() - {"RELEVANCE"}:
        ids = list[str]()
        for mailbox in mailboxes:
            data = await client.execute(MESSAGE_IDS, mailbox=mailbox["id"], order=order)
            ids += [node["id"] for node in data["node"]["messages"]["nodes"]]
        assert (len(ids), set(ids)) == (len(expected), expected), order


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
async def test_released_store_sends_and_receives(archive: Path, tmp_path: Path) -> None:
    manifest = store_archive.extract_store_archive(archive, tmp_path)
    process = MerganserProcess(tmp_path)
    migrate_and_check(process)
    async with open_store(process, manifest) as store:
        ada = store.clients["ada"]
        raw = raw_message("Received after the upgrade", body="New.").removesuffix(b"\r\n")
        replies = await deliver_by_lmtp(
            store.environment, store.spool_folder, raw, "ada@example.org"
        )
        assert [reply[:4] for reply in replies] == ["250 "]
        nodes = await user_nodes(ada, RECEIVED_SUBJECTS, "messages")
        texts = [node["text"] for node in nodes if node["subject"] == "Received after the upgrade"]
        assert [content.strip() for content in texts] == ["New."]
        before = await user_nodes(ada, QUEUED_ENTRIES, "submissions")
        await ada.mutate(
            "messageSend", to=[{"address": "carol@example.com"}], subject="Sent later", text="Hi."
        )
        assert len(await user_nodes(ada, QUEUED_ENTRIES, "submissions")) == len(before) + 1
    migrate_and_check(process)


async def user_nodes(client: StoreClient, document: str, field: str) -> list[Any]:
    """Read the nodes of a connection of the signed-in user."""
    nodes: list[Any] = (await client.execute(document))["viewer"]["user"][field]["nodes"]
    return nodes

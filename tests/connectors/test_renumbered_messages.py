"""Servers that use a mark for another message: none is lost, deleted unread or stored twice."""

from pathlib import Path
from typing import Any

import pytest

from graph.types import global_ids
from models.admin.tasks import TaskState
from models.connectors import ConnectorProtocol
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.mail_servers.imap_and_pop3_servers import (
    REMOTE_PASSWORD,
    FakeImapServer,
    FakePop3Server,
    FakeRemoteMessage,
    FakeRemoteServer,
    run_remote_server,
)
from tests.support.operations.connector_operations import (
    add_connector,
    load_subjects_by_mailbox,
    rerun_connector,
    run_connector,
)
from tests.support.servers.dovecot_server import DovecotAccount

pytestmark = pytest.mark.usefixtures("verify_consistency")
RETENTION_DAYS = 7
UPDATE = """mutation ($connector: ID!, $server: RemoteServerPatch!) {
  connectorUpdate(input: {connectors: [{id: $connector}], set: {server: $server}}) {
    errors { code message path } } }"""


def remote_message(subject: str, *, uidl: bytes | None = None) -> FakeRemoteMessage:
    return FakeRemoteMessage(raw_message(subject), uidl=uidl)


async def add_remote_connector(
    client: GraphQLClient, remote: FakeRemoteServer, **values: Any
) -> int:
    """Add a connector to a scripted server."""
    name = "imap" if remote.protocol is ConnectorProtocol.IMAP else "pop3"
    account = DovecotAccount(Path(), {name: remote.port})
    own_values = {"protocol": remote.protocol, "password": REMOTE_PASSWORD}
    return await add_connector(client, account, **own_values, **values)


async def assert_stored(client: GraphQLClient, run: Any, *subjects: str) -> None:
    """Assert that a run has succeeded, and that the mailboxes have these messages."""
    assert (run.state, run.error) == (TaskState.SUCCEEDED, None), run.log
    stored = await load_subjects_by_mailbox(client.environment)
    assert sorted(subject for names in stored.values() for subject in names) == sorted(subjects)


async def test_uid_validity_that_comes_back_identifies_messages_by_content(
    ada: GraphQLClient,
) -> None:
    """A server that was restored from a backup numbers its messages as before, or almost."""
    stored: set[str] = set()
    async with run_remote_server(FakeImapServer()) as remote:
        assert isinstance(remote, FakeImapServer)
        connector_id = await add_remote_connector(ada, remote)
        for uid_validity, subjects in (
            (1, ["A", "B"]),
            (2, ["C", "B"]),
            (1, ["D", "B"]),
            (2, ["A", "E"]),
            (1, ["F"]),
            (1, ["F", "D"]),
            (3, []),
            (2, ["G", "F"]),
        ):
            remote.uid_validity = uid_validity
            remote.messages = {
                5 + number: remote_message(subject) for number, subject in enumerate(subjects)
            }
            run = await rerun_connector(ada.environment, connector_id)
            stored |= set(subjects)
            await assert_stored(ada, run, *stored)


@pytest.mark.parametrize("changed", ["port", "username", "protocol"])
async def test_changed_account_keeps_no_marks_of_the_former_one(
    ada: GraphQLClient, clock: ManualClock, changed: str
) -> None:
    """The UIDs of both accounts are the same, and so is their UIDVALIDITY."""
    change_options(ada.environment, connectors_allow_private_networks=True)
    new_server = FakePop3Server() if changed == "protocol" else FakeImapServer()
    async with run_remote_server(FakeImapServer()) as first, run_remote_server(new_server) as other:
        first.messages = {n: remote_message(f"A{n}", uidl=b"%d" % n) for n in (1, 2)}
        connector_id = await add_remote_connector(
            ada, first, source_retention=RETENTION_DAYS * 86_400
        )
        await assert_stored(ada, await run_connector(ada.environment, connector_id), "A1", "A2")
        clock.tick(days=RETENTION_DAYS - 1)
        new_messages = {n: remote_message(f"B{n}", uidl=b"%d" % n) for n in (1, 2)}
        new_messages[3] = remote_message("A2", uidl=b"3")  # in both accounts
        server: dict[str, Any] = {"password": REMOTE_PASSWORD}
        if changed == "username":
            server["username"] = "other"
        else:
            server |= {"port": other.port, "protocol": other.protocol.name, "security": "NONE"}
        current = first if changed == "username" else other
        current.messages = new_messages
        connector = global_ids.encode("Connector", connector_id)
        payload = await ada(UPDATE, connector=connector, server=server)
        assert payload["connectorUpdate"]["errors"] == []
        clock.tick(days=2)
        run = await rerun_connector(ada.environment, connector_id)
        await assert_stored(ada, run, "A1", "A2", "B1", "B2")
        assert (run.deleted_remote_count, len(current.messages)) == (0, 3)
        clock.tick(days=RETENTION_DAYS)
        run = await rerun_connector(ada.environment, connector_id)
        assert (run.deleted_remote_count, len(current.messages)) == (3, 0)
        assert run.imported_count == 0


async def test_reused_uidl_of_a_deleted_message_is_fetched(ada: GraphQLClient) -> None:
    async with run_remote_server(FakePop3Server()) as remote:
        connector_id = await add_remote_connector(ada, remote, source_retention=0)
        for number, subject in enumerate("ABC", 1):
            remote.messages = {1: remote_message(subject, uidl=b"1")}
            run = await rerun_connector(ada.environment, connector_id)
            await assert_stored(ada, run, *"ABC"[:number])
            assert (run.deleted_remote_count, remote.messages) == (1, {})


async def test_message_that_the_server_does_not_delete_is_stored_once(ada: GraphQLClient) -> None:
    remote_server = FakePop3Server({1: remote_message("A", uidl=b"1")}, {"DELE": b"+OK\r\n"})
    async with run_remote_server(remote_server) as remote:
        connector_id = await add_remote_connector(ada, remote, source_retention=0)
        for _ in range(3):
            run = await rerun_connector(ada.environment, connector_id)
            await assert_stored(ada, run, "A")

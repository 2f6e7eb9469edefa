"""What clients know before and after a restore, and whether it is still valid."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.maintenance.restore_mark import read_mark_or_none
from models.events.journal import Stream
from models.users.tables import User
from tests.support.accounts.account_rows import message_with_subject
from tests.support.clients.plain_http import plain_client
from tests.support.servers.merganser_server import HttpClient, MerganserProcess

CHANGES_QUERY = """query ($after: Cursor!) { changes(after: $after) { cursor events { type
  ... on ResyncChange { reason } ... on MessageChange { messageId } } } }"""
STATE_QUERY = """{ viewer { user { cursor
  mailboxes { nodes { path uidValidity } }
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
    validities = {
        mailbox["path"]: int(mailbox["uidValidity"]) for mailbox in user["mailboxes"]["nodes"]
    }
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
                    dict(mark.streams) if (mark := await read_mark_or_none(environment)) else {}
                )


async def run_backup_and_changes(
    server: MerganserProcess, backup: Callable[[], None], *, prefix: str = ""
) -> tuple[ClientState, ClientState]:
    """Deliver mail, back up, deliver more. Return the client state before and after the backup.

    The subjects begin with the prefix; the server must not know them yet.
    """
    await deliver(server, f"{prefix}one", f"{prefix}two")
    async with server.open_client("ada") as client:
        state_before = await read_state(client)
        await wait_for_incarnation_mark(server)
        await asyncio.to_thread(backup)
        await deliver(server, *(f"{prefix}lost {number}" for number in range(3)))
        return state_before, await read_state(client)


async def assert_clients_must_resync(
    server: MerganserProcess, before: ClientState, after: ClientState, *, prefix: str = ""
) -> None:
    """Assert that cursors, UIDVALIDITY and links from before the restore are invalid.

    Delivers messages with subjects that begin with the prefix; the server must not know them yet.
    """
    await deliver(server, *(f"{prefix}new {number}" for number in range(5)))
    async with (
        server.open_client("ada") as client,
        plain_client(base_url=server.url) as anonymous,
    ):
        current = await read_state(client)
        for old_state in (before, after):
            assert await events_after(client, old_state.cursor) == RESTORE_EVENTS
            assert not set(old_state.validities.values()) & set(current.validities.values())
            assert (await anonymous.get(url_path(old_state.link))).status_code == 401
        assert (await anonymous.get(url_path(current.link))).status_code == 200
        assert await events_after(client, current.cursor) == []
        await deliver(server, f"{prefix}later")
        assert {event["type"] for event in await events_after(client, current.cursor)} >= {
            "MESSAGE_RECEIVED"
        }
        async with client.subscribe_by_sse(CHANGES_SUBSCRIPTION, after=after.cursor) as events:
            payload = await events.read_event()
            assert payload["data"]["changes"]["events"] == RESTORE_EVENTS


async def assert_clients_can_continue(
    server: MerganserProcess, client_state: ClientState, *, subject: str = "next"
) -> None:
    """Assert that all that a client knows is still valid.

    Delivers a message with this subject, which must be a new one.
    """
    async with server.open_client("ada") as client:
        current = await read_state(client)
        assert current.validities == client_state.validities
        assert current.cursor == client_state.cursor
        assert await events_after(client, client_state.cursor) == []
        await deliver(server, subject)
        assert {event["type"] for event in await events_after(client, client_state.cursor)} >= {
            "MESSAGE_RECEIVED"
        }


def url_path(link: str) -> str:
    return "/" + link.split("/", 3)[3] if "://" in link else link

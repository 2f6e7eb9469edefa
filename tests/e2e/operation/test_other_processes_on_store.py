"""Tests of other processes that use the same database, and of what a restart keeps."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.servers.ports import free_port
from merganser.commands.users.user_operations import find_user_id_or_fail_command
from merganser.server.environment_factory import user_context
from resolvers.changes.stream_reader import POLL_SECONDS
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from tests.conftest import raw_message
from tests.support.clients.change_followers import CHANGES_SUBSCRIPTION
from tests.support.servers.merganser_server import (
    OTHER_PASSWORD,
    PASSWORD,
    HttpClient,
    MerganserProcess,
    WebsocketClient,
)

STORES = ["sqlite"]  # the path is the same for every database
SIGN_IN = """
mutation ($username: String!, $password: String!) {
  authenticate(input: {username: $username, password: $password}) {
    token errors { code }
  }
}
"""
ACCOUNT_QUERY = """
{ viewer { user { cursor messageCount mailboxes { nodes { id path messageCount uidNext modseq } }
  messages { nodes { id subject imap { uid flags } text } } submissions { nodes { id state } } } } }
"""


@asynccontextmanager
async def subscribed_socket(server: MerganserProcess, name: str) -> AsyncGenerator[WebsocketClient]:
    """A subscribed socket that has read the whole journal and waits for a wake-up."""
    async with (
        server.open_client(name) as client,
        server.open_websocket(server.secrets[name]) as socket,
    ):
        await socket.subscribe(CHANGES_SUBSCRIPTION, after=await client.load_cursor())
        assert await socket.receives_nothing()
        yield socket


async def run_command(server: MerganserProcess, *arguments: str | Path, stdin: str = "") -> str:
    """Run a command while the server runs and return its output."""
    result = await asyncio.to_thread(server.run_command, *arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def _seconds_since_commit(event: Any) -> float:
    """Return the seconds since the event was committed."""
    return time.time() - datetime.fromisoformat(event["at"]).timestamp()


def assert_were_caused_by_wakeups(delays: list[float]) -> None:
    """A busy machine can delay an event, but seldom all. Without a wake-up, a poll would come."""
    assert min(delays) < 1
    assert max(delays) < POLL_SECONDS / 2


async def test_change_of_other_process_reaches_subscriber_within_a_second(
    server: MerganserProcess,
) -> None:
    async with subscribed_socket(server, "ada") as ada, subscribed_socket(server, "bob") as bob:
        delays: list[float] = []
        async with server.environment() as environment:
            context = user_context(
                environment, await find_user_id_or_fail_command(environment, "ada")
            )
            for path in ("One", "Two", "Three"):
                await mailbox_create.create_mailboxes(context, NewMailboxes([path]))
                (event,) = await ada.read_events(1)
                delays.append(_seconds_since_commit(event))
                assert (event["type"], event["path"]) == ("MAILBOX_CREATED", path)
        assert_were_caused_by_wakeups(delays)
        assert await bob.receives_nothing()


async def test_imported_message_reaches_subscriber_within_a_second(
    server: MerganserProcess, tmp_path: Path
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.eml").write_bytes(raw_message(f"Kept {number}"))
    async with subscribed_socket(server, "ada") as ada, subscribed_socket(server, "bob") as bob:
        arguments = ("import", tmp_path, "--user", "ada", "--mailbox", "INBOX")
        import_task = asyncio.create_task(run_command(server, *arguments))
        message_events: list[Any] = []
        delays: list[float] = []
        while len(message_events) < 3:  # events of the import task come between them
            events = (await ada.read_changes())["events"]
            delays += map(_seconds_since_commit, events)
            message_events += [
                event for event in events if event["type"] in ("MESSAGE_ADDED", "MESSAGE_RECEIVED")
            ]
        assert_were_caused_by_wakeups(delays)
        subjects = sorted(event["message"]["subject"] for event in message_events)
        assert subjects == ["Kept 0", "Kept 1", "Kept 2"]
        assert await import_task == "3 messages imported.\n"
        assert await bob.receives_nothing()


async def test_user_created_by_command_is_served_at_once(server: MerganserProcess) -> None:
    arguments = ("user", "add", "zoe", "--address", "zoe@example.org", "--password-stdin")
    assert "zoe created: usr_" in await run_command(server, *arguments, stdin=f"{PASSWORD}\n")
    async with server.open_client() as anonymous:
        sign_in = await anonymous(SIGN_IN, username="zoe@example.org", password=PASSWORD)
        server.secrets["zoe"] = sign_in["authenticate"]["token"]
        async with subscribed_socket(server, "zoe") as zoe:
            reply = await server.deliver_by_lmtp(raw_message("Welcome"), "zoe@example.org")
            assert reply.startswith("250 2.0.0 OK: queued")
            assert (await zoe.read_events(1))[0]["message"]["subject"] == "Welcome"

        await run_command(
            server, "user", "passwd", "zoe", "--password-stdin", stdin=f"{OTHER_PASSWORD}\n"
        )
        second_sign_in = await anonymous(SIGN_IN, username="zoe", password=PASSWORD)
        assert [error["code"] for error in second_sign_in["authenticate"]["errors"]] == [
            "AUTHENTICATION_FAILED"
        ]
        second_sign_in = await anonymous(SIGN_IN, username="zoe", password=OTHER_PASSWORD)
        assert second_sign_in["authenticate"]["token"]
    api_key = (
        await run_command(server, "api-key", "create", "--name", "cli", "--user", "zoe")
    ).strip()
    server.secrets["zoe"] = api_key
    async with server.open_client("zoe") as zoe_again:
        assert (await zoe_again("{ viewer { role } }"))["viewer"]["role"] == "USER"


async def test_second_server_and_repair_are_refused_while_server_runs(
    server: MerganserProcess,
) -> None:
    is_sqlite = not server.store_url
    other_server = MerganserProcess(
        server.folder, server.store_url, server.extra_settings, free_port(), free_port()
    )
    if is_sqlite:
        result = await asyncio.to_thread(other_server.run_command, "serve")
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"Another merganser process uses this database (pid {server.pid})" in result.stderr
        assert "Traceback" not in result.stderr
    check_task = run_command(server, "check")
    repair = asyncio.to_thread(server.run_command, "check", "--repair")
    check_output, repair_result = await asyncio.gather(check_task, repair)
    assert json.loads(check_output)["whole"]
    assert (repair_result.exit_code, repair_result.stdout) == (1, "")
    assert (
        "stop it, then repair" if is_sqlite else "stop all servers, then repair"
    ) in repair_result.stderr
    async with server.open_client("ada") as ada:
        assert (await ada("{ viewer { role } }"))["viewer"]["role"] == "USER"


async def _fill_account(fay: HttpClient, server: MerganserProcess) -> Any:
    """Fill the account with mail, a mailbox and a submission, and return its state."""
    for number in range(3):
        await server.deliver_by_lmtp(raw_message(f"Pond {number}"), "fay@example.org")
    await fay.run_mutation("mailboxCreate", {"paths": ["Clients/Eve"]})
    selection = {"mailbox": {"path": "INBOX"}, "uids": "1"}
    move_input = {"select": selection, "to": {"path": "Clients/Eve"}, "set": {"flagged": True}}
    await fay.run_mutation("messageMove", move_input)
    send_input = {"to": [{"address": "carol@far.example"}], "text": "Hi", "sendAt": _tomorrow()}
    await fay.run_mutation("messageSend", send_input)
    return await fay(ACCOUNT_QUERY)


def _tomorrow() -> str:
    return datetime.fromtimestamp(time.time() + 86_400).astimezone().isoformat()


async def test_restart_keeps_all_data_and_subscription_continues(server: MerganserProcess) -> None:
    async with server.open_client("fay") as fay, server.open_client() as anonymous:
        sign_in = await anonymous(SIGN_IN, username="fay", password=PASSWORD)
        state_before = await _fill_account(fay, server)
        token = sign_in["authenticate"]["token"]
    async with server.open_websocket(server.secrets["fay"]) as listener:
        await listener.subscribe(CHANGES_SUBSCRIPTION)
        await asyncio.to_thread(server.stop)  # a subscriber does not delay the stop
        assert await listener.wait_for_close_code() in {1001, 1012}
    result = await asyncio.to_thread(server.run_command, "user", "list", "--json")
    assert {"ada", "bob", "fay"} <= {user["username"] for user in json.loads(result.stdout)}
    await asyncio.to_thread(server.start)
    async with server.open_client("fay") as fay, server.open_websocket(token) as socket:
        assert await fay(ACCOUNT_QUERY) == state_before
        await socket.subscribe(CHANGES_SUBSCRIPTION, after=state_before["viewer"]["user"]["cursor"])
        await server.deliver_by_lmtp(raw_message("After"), "fay@example.org")
        assert (await socket.read_events(1))[0]["message"]["subject"] == "After"

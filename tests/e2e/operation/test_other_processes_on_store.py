"""What other processes do to the same store, and what a restart keeps."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.servers.ports import free_port
from merganser.commands.user_operations import user_id_of_name
from merganser.server.environment_factory import user_context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import raw_message
from tests.support.clients.change_followers import CHANGES_SUBSCRIPTION
from tests.support.servers.merganser_server import OTHER, PASSWORD, Client, Server, Socket

STORES = ["sqlite"]  # the road there is the same whatever the store
SIGN_IN = """
mutation ($username: String!, $password: String!) {
  authenticate(input: {username: $username, password: $password, token: true}) {
    token errors { code }
  }
}
"""
ALL = """
{ viewer { user { cursor messageCount mailboxes { id path total uidNext modseq }
  messages { nodes { id subject uid flags text } } submissions { nodes { id state } } } } }
"""


@asynccontextmanager
async def following(server: Server, name: str) -> AsyncGenerator[Socket]:
    """A socket that waits for the bell, having found nothing in the journal."""
    async with server.client(name) as client, server.socket(server.secrets[name]) as socket:
        await socket.subscribe(CHANGES_SUBSCRIPTION, after=await client.cursor())
        assert await socket.silent()
        yield socket


async def beside(server: Server, *words: str | Path, stdin: str = "") -> str:
    """What a command says that does well beside the server."""
    said = await asyncio.to_thread(server.command, *words, stdin=stdin)
    assert said.code == 0, said.err
    return said.out


def _age(event: Any) -> float:
    """Seconds since the event was committed."""
    return time.time() - datetime.fromisoformat(event["at"]).timestamp()


async def test_another_process_s_change_is_heard_within_a_second(server: Server) -> None:
    async with following(server, "ada") as ada, following(server, "bob") as bob:
        async with server.world() as world:
            mine = user_context(world, await user_id_of_name(world, "ada"))
            for path in ("One", "Two", "Three"):
                slow = server.hindered()
                await mailbox_loaders.create_mailboxes(mine, NewMailboxes([path]))
                (event,) = await ada.events(1)
                assert _age(event) < 1 + server.hindered() - slow
                assert (event["kind"], event["path"]) == ("MAILBOX_CREATED", path)
        assert await bob.silent()


async def test_imported_mail_is_heard_within_a_second(server: Server, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.eml").write_bytes(raw_message(f"Kept {number}"))
    async with following(server, "ada") as ada, following(server, "bob") as bob:
        words = ("import", tmp_path, "--user", "ada", "--mailbox", "INBOX")
        importing = asyncio.create_task(beside(server, *words))
        heard: list[Any] = []
        slow = server.hindered()
        while len(heard) < 3:  # beside them the task of the import is heard
            events = (await ada.batch())["events"]
            assert max(_age(event) for event in events) < 1 + server.hindered() - slow
            heard += [event for event in events if event["kind"] == "MESSAGE_ADDED"]
        subjects = sorted(one["message"]["subject"] for one in heard)
        assert subjects == ["Kept 0", "Kept 1", "Kept 2"]
        assert await importing == "3 messages imported.\n"
        assert await bob.silent()


async def test_an_account_made_beside_the_server_is_served_at_once(server: Server) -> None:
    words = ("user", "add", "zoe", "--address", "zoe@example.org", "--password-stdin")
    assert "zoe is made" in await beside(server, *words, stdin=f"{PASSWORD}\n")
    async with server.client() as stranger:
        signed = await stranger(SIGN_IN, username="zoe@example.org", password=PASSWORD)
        server.secrets["zoe"] = signed["authenticate"]["token"]
        async with following(server, "zoe") as zoe:
            sent = await server.deliver(raw_message("Welcome"), "zoe@example.org")
            assert sent.startswith("250 2.0.0 Delivered")
            assert (await zoe.events(1))[0]["message"]["subject"] == "Welcome"

        await beside(server, "user", "passwd", "zoe", "--password-stdin", stdin=f"{OTHER}\n")
        again = await stranger(SIGN_IN, username="zoe", password=PASSWORD)
        assert [one["code"] for one in again["authenticate"]["errors"]] == ["AUTHENTICATION_FAILED"]
        again = await stranger(SIGN_IN, username="zoe", password=OTHER)
        assert again["authenticate"]["token"]
    key = (await beside(server, "token", "create", "--name", "cli", "--user", "zoe")).strip()
    server.secrets["zoe"] = key
    async with server.client("zoe") as zoe_again:
        assert (await zoe_again("{ viewer { role } }"))["viewer"]["role"] == "USER"


async def test_a_store_has_one_server_and_is_checked_but_not_repaired_meanwhile(
    server: Server,
) -> None:
    sqlite = not server.store
    other = Server(server.folder, server.store, server.more, free_port(), free_port())
    if sqlite:
        said = await asyncio.to_thread(other.command, "serve")
        assert (said.code, said.out) == (1, "")
        assert f"another merganser uses this store (pid {server.pid})" in said.err
        assert "Traceback" not in said.err
    checking = beside(server, "check")
    repair = asyncio.to_thread(server.command, "check", "--repair")
    checked, refused = await asyncio.gather(checking, repair)
    assert json.loads(checked)["whole"]
    assert (refused.code, refused.out) == (1, "")
    assert ("stop it, then repair" if sqlite else "stop all of them, then repair") in refused.err
    async with server.client("ada") as ada:
        assert (await ada("{ viewer { role } }"))["viewer"]["role"] == "USER"


async def _furnished(fay: Client, server: Server) -> Any:
    """What an account shows that has a bit of everything."""
    for number in range(3):
        await server.deliver(raw_message(f"Pond {number}"), "fay@example.org")
    await fay.do("mailboxCreate", {"paths": ["Clients/Eve"]})
    chosen = {"mailbox": {"path": "INBOX"}, "uids": "1"}
    to = {"select": chosen, "to": {"path": "Clients/Eve"}, "set": {"flagged": True}}
    await fay.do("messageMove", to)
    later = {"to": [{"address": "carol@far.example"}], "text": "Hi", "sendTime": _tomorrow()}
    await fay.do("messageSend", later)
    return await fay(ALL)


def _tomorrow() -> str:
    return datetime.fromtimestamp(time.time() + 86_400).astimezone().isoformat()


async def test_a_restart_keeps_everything_and_the_stream_goes_on(server: Server) -> None:
    async with server.client("fay") as fay, server.client() as stranger:
        signed = await stranger(SIGN_IN, username="fay", password=PASSWORD)
        before = await _furnished(fay, server)
        token = signed["authenticate"]["token"]
    async with server.socket(server.secrets["fay"]) as listener:
        await listener.subscribe(CHANGES_SUBSCRIPTION)
        await asyncio.to_thread(server.stop)  # whoever listens does not hold it up
        assert await listener.closed() in {1001, 1012}
    with_it_down = await asyncio.to_thread(server.command, "user", "list", "--json")
    assert {"ada", "bob", "fay"} <= {one["username"] for one in json.loads(with_it_down.out)}
    await asyncio.to_thread(server.start)
    async with server.client("fay") as fay, server.socket(token) as socket:
        assert await fay(ALL) == before
        await socket.subscribe(CHANGES_SUBSCRIPTION, after=before["viewer"]["user"]["cursor"])
        await server.deliver(raw_message("After"), "fay@example.org")
        assert (await socket.events(1))[0]["message"]["subject"] == "After"

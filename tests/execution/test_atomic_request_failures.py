"""`@atomic` requests by every transport, and those that do not come to their end."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import event, text

from graph.app import create_app
from graph.schema import schema
from mail.storage.blobs.object_stores import FolderStore
from models.events import journal
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.operations.atomic_operations import (
    FAILING_RENAME,
    entry_field,
    error_codes_by_field,
    load_key_values,
)
from tests.support.servers.live_server import House, house, until

KEEPS = f"mutation @atomic {{ {entry_field('a', by='a')} {entry_field('b', by='b')} }}"
FAILS = f"mutation @atomic {{ {entry_field('c', by='c')} {FAILING_RENAME} }}"
STORES = f"""mutation ($text: String!) @atomic {{ {entry_field("a", by="a")}
  messageUpload(input: {{mailbox: {{path: "INBOX"}}, subject: "Large",
  to: [{{address: "x@y.example"}}], attachments: [{{content: $text, filename: "x.bin"}}]}})
  {{ errors {{ code }} }} }}"""


class Gate(FolderStore):
    """A store of large bytes that says when something comes, and lets it in when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.came = asyncio.Event()
        self.opened = asyncio.Event()

    async def put(self, name: str, data: bytes) -> None:
        self.came.set()
        await self.opened.wait()
        await super().put(name, data)


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    gate = Gate(tmp_path / "gated")
    yield gate
    await gate.close()


@pytest.fixture
def slow(world: Environment, gate: Gate) -> Environment:
    """The same world, whose large bytes wait at the gate."""
    return replace(world, object_store=gate)


def question(client: Client, query: str, **variables: Any) -> dict[str, Any]:
    return {
        "json": {"query": query, "variables": variables},
        "headers": client.headers,
    }


def random_text(client: Client) -> str:
    """Base64 of bytes that do not become less."""

    return base64.b64encode(client.world.random_bytes(60_000)).decode()


# transports

Ask = Callable[[House, Client, str], Awaitable[Any]]


async def by_post(there: House, client: Client, query: str) -> Any:
    async with httpx.AsyncClient(timeout=30) as http:
        asked = question(client, query)
        return (await http.post(f"http://127.0.0.1:{there.port}/graphql", **asked)).json()


async def by_events(there: House, client: Client, query: str) -> Any:
    heard = await there.stream(client, query)
    await until(lambda: heard.over)
    return heard.got[0]


async def by_socket(there: House, client: Client, query: str) -> Any:
    heard = await there.follow(client, query)
    await until(lambda: heard.over)
    await heard.leave()
    return heard.got[0]


@pytest.mark.parametrize("ask", [by_post, by_events, by_socket])
async def test_every_transport_keeps_all_or_none(
    ask: Ask, ada: Client, world: Environment, tmp_path: Path
) -> None:
    async with house(world, tmp_path) as there:
        assert error_codes_by_field((await ask(there, ada, KEEPS))["data"]) == {"a": [], "b": []}
        failed = (await ask(there, ada, FAILS))["data"]
        assert error_codes_by_field(failed) == {"c": ["ABORTED"], "mailboxRename": ["NOT_FOUND"]}
    assert await load_key_values(ada) == {"a": "1", "b": "1"}


# ends before the end


async def test_a_deadline_takes_all_back(
    ada: Client, slow: Environment, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "limits", replace(schema.limits, deadline=0.5))
    async with client_of(slow, ada, tmp_path) as client:
        answer = await client.raw(STORES, text=random_text(ada))
    assert answer["errors"][0]["extensions"]["code"] == "DEADLINE_EXCEEDED"
    assert gate.came.is_set()
    assert await load_key_values(ada) == {}


async def test_a_deadline_during_the_commit_returns_the_payloads(
    ada: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "limits", replace(schema.limits, deadline=1.5))
    await ada(KEEPS)  # what is prepared once is prepared
    waits: list[float] = []

    def delay(_: Any) -> None:
        if not waits:
            waits.append(2)
            time.sleep(waits[0])  # the event loop sees the deadline while the commit runs

    for engine in world.database.engines:
        event.listen(engine, "commit", delay)
    answer = await ada.raw(
        f"mutation @atomic {{ {entry_field('c', by='c')} {entry_field('d', by='d')} }}"
    )
    assert waits
    assert "errors" not in answer
    assert error_codes_by_field(answer["data"]) == {"c": [], "d": []}
    assert set(await load_key_values(ada)) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("by", ["post", "events", "socket"])
async def test_a_client_that_leaves_takes_all_back(
    by: str, ada: Client, slow: Environment, gate: Gate, tmp_path: Path
) -> None:
    given = random_text(ada)
    leave: Callable[[], Awaitable[None]]
    async with house(slow, tmp_path) as there:
        if by == "socket":
            heard = await there.follow(ada, STORES, text=given)
            leave = heard.leave
        elif by == "events":
            heard = await there.stream(ada, STORES, text=given)
            leave = heard.leave
        else:
            leave = await posted(there, ada, given)
        async with asyncio.timeout(5):
            await gate.came.wait()
        await leave()
        crowd = there.endpoint.guards.operation_limiter
        await until(lambda: not crowd.in_use_count)
    assert await load_key_values(ada) == {}


async def posted(there: House, client: Client, given: str) -> Callable[[], Awaitable[None]]:
    """Ask by POST; returns how to go away."""
    _, writer = await asyncio.open_connection("127.0.0.1", there.port)
    body = orjson.dumps({"query": STORES, "variables": {"text": given}})
    head = f"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    head += f"Authorization: Bearer {client.secret}\r\nContent-Type: application/json\r\n\r\n"
    writer.write(head.encode() + body)

    async def leave() -> None:
        writer.close()
        await writer.wait_closed()

    return leave


async def test_what_is_called_off_in_a_statement_goes_back(ada: Client, tmp_path: Path) -> None:
    made = list[int]()

    def key() -> int:
        made.append(ada.world.new_id())
        asking.cancel()  # what is awaited next is the statement that stores the row
        return made[-1]

    async with client_of(replace(ada.world, new_id=key), ada, tmp_path) as client:
        asking = asyncio.create_task(client.raw(KEEPS))
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert made
    assert await load_key_values(ada) == {}
    assert error_codes_by_field(await ada(KEEPS)) == {"a": [], "b": []}  # the store is free


async def test_what_waits_at_the_gate_is_kept_when_it_opens(
    ada: Client, slow: Environment, gate: Gate, tmp_path: Path
) -> None:
    async with client_of(slow, ada, tmp_path) as client:
        asking = asyncio.create_task(client(STORES, text=random_text(ada)))
        await gate.came.wait()
        assert await load_key_values(ada) == {}
        gate.opened.set()
        assert error_codes_by_field(await asking) == {"a": [], "messageUpload": []}
    assert await load_key_values(ada) == {"a": "1"}


@asynccontextmanager
async def client_of(world: Environment, client: Client, spool: Path) -> AsyncIterator[Client]:
    transport = httpx.ASGITransport(app=create_app(world, spool_folder=spool))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield replace(client, http=http, world=world)


# others at the same time


def names(*users: str) -> str:
    fields = [
        f'{user}: userUpdate(input: {{users: {{usernames: ["{user}"]}}, set: {{name: "New"}}}})'
        " { users { name } errors { code } }"
        for user in users
    ]
    return f"mutation @atomic {{ {' '.join(fields)} }}"


async def waiting(world: Environment) -> bool:
    """Whether somebody waits for a row of PostgreSQL."""
    async with world.database.engine.connect() as connection:
        asked = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool((await connection.execute(asked)).scalar())


async def crossing(
    world: Environment, first: int, second: int, asking: "asyncio.Task[Any]"
) -> None:
    """Hold one account until the request waits for it, then want the one it holds."""
    async with world.database.write_session() as session:
        await session.exec(text("SET LOCAL deadlock_timeout = '1min'"))  # type: ignore[call-overload]
        await journal.lock_streams(session, [second])
        async with asyncio.timeout(5):
            while not (await waiting(world) or asking.done()):  # noqa: ASYNC110 - it rings no bell
                await asyncio.sleep(0.01)
        await journal.lock_streams(session, [first])  # the request is given up for this


async def test_a_request_that_crosses_with_another_runs_once_more(
    ada: Client, bob: Client, root: Client
) -> None:
    world, users = ada.world, (ada.user.id, bob.user.id)
    if world.database.dialect != "postgresql":
        pytest.skip("one writer crosses with nobody")
    async with asyncio.timeout(30):
        asking = asyncio.create_task(root(names("ada", "bob")))
        # it begins with ada, whom nobody holds, and waits for bob
        await crossing(world, *users, asking)
        done = await asking
    assert error_codes_by_field(done) == {"ada": [], "bob": []}
    assert [one["users"][0]["name"] for one in done.values()] == ["New", "New"]

"""Whatever comes in: an answer with a code, never a bug, and never half of a change."""

import asyncio
import json
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some
from sqlalchemy import func, select
from sqlmodel import col
from starlette.applications import Starlette

from graph.app import create_app
from graph.schema import schema
from graph.types import global_ids
from mail.consistency import check_consistency
from mail.storage.blobs.object_stores import FolderStore
from models.events.journal import Stream
from models.runtime.environment import Environment
from models.store.database import Database
from models.users.roles import Role, Scope
from resolvers.admin import tasks
from resolvers.auth import authentication
from tests.conftest import CHEAP, Clock, make_client, make_key, receive
from tests.support.attacks.random_requests import ODD, Known, json_value, requests
from tests.support.mail.multipart_message import FILES, raw
from tests.support.stores import store_fixtures

LONG = "LONG" in os.environ
EXAMPLES = 5000 if LONG else 200
GRAPHQL = schema._schema  # noqa: SLF001 - there is no other way to the types
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not LONG,
    phases=[Phase.generate],  # rows of earlier examples stay: nothing could be made smaller
    suppress_health_check=list(HealthCheck),
)
PATIENCE = 0.03  # seconds until we leave a stream of events that is silent


@dataclass
class Answer:
    status: int = 0
    kind: str = ""
    body: bytes = b""

    @property
    def results(self) -> list[Any]:
        """The results of a stream, or the only one."""
        text = self.body.decode()
        if self.kind != "text/event-stream":
            return [json.loads(text)]
        lines = [line.removeprefix("data: ") for line in text.splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{")]


async def asked(app: Starlette, body: bytes, headers: dict[str, str]) -> Answer:
    """The answer of the app; a stream is left when it says nothing any more."""
    answer, coming = Answer(), [{"type": "http.request", "body": body, "more_body": False}]
    raw_headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/graphql",
        "raw_path": b"/graphql",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), *raw_headers],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }

    async def take() -> dict[str, Any]:
        if coming:
            return coming.pop()
        await asyncio.sleep(PATIENCE)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"])[b"content-type"].decode()
            answer.status, answer.kind = message["status"], kind.partition(";")[0]
        answer.body += message.get("body", b"")

    async with asyncio.timeout(20):
        await app(scope, take, send)
    return answer


class Ears(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(self.format(record))


@dataclass
class Town:
    """A store with two accounts and their mail, and an app over it."""

    world: Environment
    app: Starlette
    known: Known
    people: dict[str, dict[str, str]]
    ears: Ears = field(default_factory=Ears)
    troubles: dict[str, str] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)

    @classmethod
    async def found(cls, url: str, folder: Path) -> Self:
        database = Database(url)
        if database.dialect != "sqlite":
            await store_fixtures.emptied(database)
        blobs = FolderStore(folder / "blobs")
        world = Environment(database, blobs, signing_secret=b"s" * 32, options=CHEAP, now=Clock())
        app = create_app(world, spool_folder=folder / "spool")
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")
        ada, bob = [await make_client(world, http, name) for name in ("ada", "bob")]
        placed = [await receive(client, f"News {n}") for client in (ada, bob) for n in range(3)]
        placed.append(await receive(ada, raw(FILES[2:7])))
        boxes = [await client.box(path) for client in (ada, bob) for path in ("INBOX", "Trash")]
        shown = await ada(
            "{ viewer { user { cursor messages { nodes { guid thread { id } "
            "attachments { id } } } } } }"
        )
        mine = shown["viewer"]["user"]
        names = [
            *(global_ids.encode("Message", one.message_id) for one in placed),
            *(global_ids.encode("Mailbox", box.id) for box in boxes),
            *(global_ids.encode("User", client.user.id) for client in (ada, bob)),
            *(node["thread"]["id"] for node in mine["messages"]["nodes"]),
            *(one["id"] for node in mine["messages"]["nodes"] for one in node["attachments"]),
        ]
        words = [node["guid"] for node in mine["messages"]["nodes"]]
        root = await make_key(world, "root", role=Role.ROOT, scopes=[Scope.MASTER])
        reader = {"user_id": ada.user.id, "role": Role.USER, "scopes": [Scope.MASTER]}
        reading = await make_key(world, "reader", read_only=True, **reader)
        people = {
            "ada": ada.headers,
            "root": {"Authorization": f"Bearer {root}"},
            "reader": {"Authorization": f"Bearer {reading}"},
            "nobody": {},
        }
        await http.aclose()
        return cls(world, app, Known(tuple(names), (mine["cursor"],), tuple(words)), people)

    async def close(self) -> None:
        await authentication.wait_for_background_tasks(self.world)
        await self.world.object_store.close()
        await self.world.database.close()

    async def counted(self) -> int:
        """How many events the journal has had."""
        (row,) = await self.world.database.read(select(func.sum(col(Stream.last)).label("all")))
        return int(row.all)

    async def judge(self, who: str, request: Any, body: bytes, events: str = "") -> None:
        """Ask, and note what must not be."""
        before, heard = await self.counted(), len(self.ears.heard)
        headers = self.people[who] | ({"Accept": events} if events else {})
        try:
            answer = await asked(self.app, body, headers)
            unchanged = await self.counted() == before
            fault = self._fault(answer, request, by_root=who == "root", unchanged=unchanged)
        except Exception as error:  # noqa: BLE001 - a bug that is to be shown with its input
            fault = repr(error)
        logged = "\n".join(self.ears.heard[heard:])
        if fault or logged:
            field = request["query"].partition(" it: ")[2][:20] if isinstance(request, dict) else ""
            signature = "\n".join([field, *(logged or fault).splitlines()[-3:]])
            self.troubles.setdefault(signature, f"{who}: {body!r}\n{fault}\n{logged}")

    def _fault(self, answer: Answer, request: Any, *, by_root: bool, unchanged: bool) -> str:
        text = answer.body.decode()
        results = answer.results
        codes = [
            error["extensions"]["code"] for one in results for error in one.get("errors") or []
        ]
        self.answers.update(codes or ["OK"])
        if answer.status >= 500 or "INTERNAL_SERVER_ERROR" in text:
            return f"{answer.status} {text[:2000]}"
        if unchanged:
            return ""
        for one in results:
            payload = (one.get("data") or {}).get("it")
            if any(len(error.get("path") or ()) > 1 for error in one.get("errors") or ()):
                continue  # it was done, and something behind it asked for wrongly
            if by_root and isinstance(payload, list):
                continue  # of nodes: it has looked at what is others', and is noted for it
            if not isinstance(payload, dict):
                return f"it was refused, and changed something: {text[:2000]}"
            if payload.get("errors") and not _done(payload):
                return f"it failed, and changed something: {text[:2000]}"
        if _trial(request):
            return f"it was a trial, and changed something: {text[:2000]}"
        return ""

    async def whole(self) -> None:
        """Nothing that was asked has broken anything, nor left half of anything."""
        async with asyncio.timeout(60):
            while await tasks.run_next_task(self.world):
                pass
        report = (await check_consistency(self.world)).to_json()
        assert report["whole"], report["findings"]
        assert not self.ears.heard, self.ears.heard


def _done(payload: dict[str, Any]) -> bool:
    """Whether a payload tells of something that was done beside what failed."""
    rest = {k: v for k, v in payload.items() if k not in ("__typename", "errors", "warnings")}
    return any(rest.values())


def _trial(request: Any) -> bool:
    given = [*request["variables"].values()] if isinstance(request, dict) else []
    options = [one.get("options") for one in given if isinstance(one, dict)]
    return any(isinstance(one, dict) and one.get("validateOnly") is True for one in options)


@contextmanager
def a_town(url: str, folder: Path) -> Iterator[tuple[Town, Callable[[Awaitable[None]], None]]]:
    with asyncio.Runner() as runner:
        town = runner.run(Town.found(url, folder))
        logging.getLogger().addHandler(town.ears)

        def run(work: Awaitable[None]) -> None:
            runner.run(work)  # type: ignore[arg-type]

        try:
            yield town, run
            assert not town.troubles, "\n\n".join(["", *town.troubles.values()])
            run(town.whole())
        finally:
            logging.getLogger().removeHandler(town.ears)
            run(town.close())


@pytest.fixture(params=store_fixtures.STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return store_fixtures.copied(request.getfixturevalue("sqlite_template"), tmp_path)
    return str(request.getfixturevalue("postgres"))


def test_any_values_for_any_field_are_answered_or_refused(url: str, tmp_path: Path) -> None:
    with a_town(url, tmp_path) as (town, run):
        who = some.sampled_from([*["ada"] * 8, *["root"] * 3, "reader", "nobody"])

        @SETTINGS
        @given(some.data())
        def one(data: some.DataObject) -> None:
            request = data.draw(requests(GRAPHQL, town.known))
            events = "text/event-stream" if request["query"].startswith("subscription") else ""
            body = json.dumps(request).encode()
            run(town.judge(data.draw(who), request, body, events))

        one()
    assert town.answers["OK"] > EXAMPLES / 5, "too little gets through to test anything"


MEMBERS = ("query", "variables", "operationName", "extensions", "query", "\0")
QUERIES = ("{ __typename }", "{ viewer { role } }", "{ nope }", "mutation", *ODD)


@some.composite
def bodies(draw: some.DrawFn) -> bytes:
    """JSON, nearly what is meant or not at all, and what is no JSON."""
    names = draw(some.lists(some.sampled_from(MEMBERS), max_size=4))
    value: Any = {name: json_value(draw) for name in names}
    match draw(some.integers(0, 3)):
        case 0:
            value = json_value(draw)
        case 1:
            value["query"] = draw(some.sampled_from(QUERIES))
        case 2:
            value = {"query": draw(some.sampled_from(QUERIES[:3])), "variables": {}}
    body = json.dumps(value).encode()
    match draw(some.integers(0, 5)):
        case 0:
            return body[: draw(some.integers(0, len(body)))]
        case 1:
            at = draw(some.integers(0, len(body)))
            return body[:at] + draw(some.binary(max_size=3)) + body[at:]
        case 2:
            return draw(some.binary(max_size=40))
    return body


def test_any_body_is_answered_or_refused(url: str, tmp_path: Path) -> None:
    with a_town(url, tmp_path) as (town, run):
        who = some.sampled_from(["ada", "nobody"])

        @SETTINGS
        @given(some.data())
        def one(data: some.DataObject) -> None:
            run(town.judge(data.draw(who), None, data.draw(bodies())))

        one()
    assert len(town.answers) > 3, town.answers

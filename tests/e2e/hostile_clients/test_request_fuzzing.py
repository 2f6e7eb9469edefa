"""Fuzz tests: each request gets a response code, without internal errors or partial changes."""

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
from tests.conftest import TEST_OPTIONS, ManualClock, deliver_to, make_api_key, make_client
from tests.support.attacks.random_requests import (
    ODD_TEXTS,
    KnownValues,
    draw_json_value,
    random_requests,
)
from tests.support.mail.multipart_message import ATTACHMENTS, build_message
from tests.support.stores import store_fixtures

IS_LONG_RUN = "LONG" in os.environ
EXAMPLE_COUNT = 5000 if IS_LONG_RUN else 200
GRAPHQL = schema._schema  # noqa: SLF001 - no public access to the types
SETTINGS = settings(
    max_examples=EXAMPLE_COUNT,
    deadline=None,
    database=None,
    derandomize=not IS_LONG_RUN,
    phases=[Phase.generate],  # rows of earlier examples remain, so shrinking is not possible
    suppress_health_check=list(HealthCheck),
)
SILENT_STREAM_LIMIT = 0.03  # seconds until a silent event stream is closed


@dataclass
class AppResponse:
    status: int = 0
    media_type: str = ""
    body: bytes = b""

    @property
    def results(self) -> list[Any]:
        """The results of a stream, or the only result."""
        text = self.body.decode()
        if self.media_type != "text/event-stream":
            return [json.loads(text)]
        lines = [line.removeprefix("data: ") for line in text.splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{")]


async def send_request(app: Starlette, body: bytes, headers: dict[str, str]) -> AppResponse:
    """Send a body to the app. A stream is closed when it is silent."""
    response, request_messages = (
        AppResponse(),
        [{"type": "http.request", "body": body, "more_body": False}],
    )
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

    async def receive_message() -> dict[str, Any]:
        if request_messages:
            return request_messages.pop()
        await asyncio.sleep(SILENT_STREAM_LIMIT)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            content_type = dict(message["headers"])[b"content-type"].decode()
            response.status, response.media_type = message["status"], content_type.partition(";")[0]
        response.body += message.get("body", b"")

    async with asyncio.timeout(20):
        await app(scope, receive_message, send)
    return response


class ErrorRecorder(logging.Handler):
    """Records the log lines of level ERROR."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@dataclass
class FuzzTarget:
    """A database with two accounts and their mail, and an app on it."""

    environment: Environment
    app: Starlette
    known: KnownValues
    headers_by_user: dict[str, dict[str, str]]
    error_recorder: ErrorRecorder = field(default_factory=ErrorRecorder)
    failures: dict[str, str] = field(default_factory=dict)
    code_counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    async def create(cls, url: str, folder: Path) -> Self:
        database = Database(url)
        if database.dialect != "sqlite":
            await store_fixtures.empty_database(database)
        blobs = FolderStore(folder / "blobs")
        environment = Environment(
            database, blobs, signing_secret=b"s" * 32, options=TEST_OPTIONS, now=ManualClock()
        )
        app = create_app(environment, spool_folder=folder / "spool")
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")
        ada, bob = [await make_client(environment, http, name) for name in ("ada", "bob")]
        received = [
            await deliver_to(client, f"News {n}") for client in (ada, bob) for n in range(3)
        ]
        received.append(await deliver_to(ada, build_message(ATTACHMENTS[2:7])))
        mailboxes = [
            await client.load_mailbox(path) for client in (ada, bob) for path in ("INBOX", "Trash")
        ]
        result = await ada(
            "{ viewer { user { cursor messages { nodes { emailId thread { id } "
            "attachments { id } } } } } }"
        )
        user = result["viewer"]["user"]
        global_id_values = [
            *(global_ids.encode("Message", message.message_id) for message in received),
            *(global_ids.encode("Mailbox", mailbox.id) for mailbox in mailboxes),
            *(global_ids.encode("User", client.user.id) for client in (ada, bob)),
            *(node["thread"]["id"] for node in user["messages"]["nodes"]),
            *(
                message["id"]
                for node in user["messages"]["nodes"]
                for message in node["attachments"]
            ),
        ]
        email_ids = [node["emailId"] for node in user["messages"]["nodes"]]
        root_key = await make_api_key(environment, "root", role=Role.ROOT, scopes=[Scope.FULL])
        reader_options = {"user_id": ada.user.id, "role": Role.USER, "scopes": [Scope.FULL]}
        reader_key = await make_api_key(environment, "reader", read_only=True, **reader_options)
        headers_by_user = {
            "ada": ada.headers,
            "root": {"Authorization": f"Bearer {root_key}"},
            "reader": {"Authorization": f"Bearer {reader_key}"},
            "nobody": {},
        }
        await http.aclose()
        return cls(
            environment,
            app,
            KnownValues(tuple(global_id_values), (user["cursor"],), tuple(email_ids)),
            headers_by_user,
        )

    async def close(self) -> None:
        await authentication.wait_for_background_tasks(self.environment)
        await self.environment.object_store.close()
        await self.environment.database.close()

    async def count_events(self) -> int:
        """Return the number of events in the journal."""
        (row,) = await self.environment.database.read(
            select(func.sum(col(Stream.last)).label("all"))
        )
        return int(row.all)

    async def check_request(self, user: str, request: Any, body: bytes, events: str = "") -> None:
        """Send a request and record a failure."""
        count_before, message_count = await self.count_events(), len(self.error_recorder.messages)
        headers = self.headers_by_user[user] | ({"Accept": events} if events else {})
        try:
            response = await send_request(self.app, body, headers)
            unchanged = await self.count_events() == count_before
            failure = self._find_failure(
                response, request, by_root=user == "root", unchanged=unchanged
            )
        except Exception as error:  # noqa: BLE001 - a bug, which is reported with its input
            failure = repr(error)
        logged = "\n".join(self.error_recorder.messages[message_count:])
        if failure or logged:
            field_name = (
                request["query"].partition(" it: ")[2][:20] if isinstance(request, dict) else ""
            )
            signature = "\n".join([field_name, *(logged or failure).splitlines()[-3:]])
            self.failures.setdefault(signature, f"{user}: {body!r}\n{failure}\n{logged}")

    def _find_failure(
        self, response: AppResponse, request: Any, *, by_root: bool, unchanged: bool
    ) -> str:
        text = response.body.decode()
        results = response.results
        codes = [
            error["extensions"]["code"]
            for result in results
            for error in result.get("errors") or []
        ]
        self.code_counts.update(codes or ["OK"])
        if response.status >= 500 or "INTERNAL_SERVER_ERROR" in text:
            return f"{response.status} {text[:2000]}"
        if unchanged:
            return ""
        for result in results:
            payload = (result.get("data") or {}).get("it")
            if any(len(error.get("path") or ()) > 1 for error in result.get("errors") or ()):
                continue  # the mutation was done, and a selected field failed
            if by_root and isinstance(payload, list):
                continue  # nodes: reading objects of other users is recorded in the admin log
            if not isinstance(payload, dict):
                return f"it was refused, and changed something: {text[:2000]}"
            if payload.get("errors") and not _has_results(payload):
                return f"it failed, and changed something: {text[:2000]}"
        if _is_validate_only(request):
            return f"it was a trial, and changed something: {text[:2000]}"
        return ""

    async def assert_consistent(self) -> None:
        """Assert that the requests have left the database consistent."""
        async with asyncio.timeout(60):
            while await tasks.run_next_task(self.environment):
                pass
        report = (await check_consistency(self.environment)).to_json()
        assert report["whole"], report["findings"]
        assert not self.error_recorder.messages, self.error_recorder.messages


def _has_results(payload: dict[str, Any]) -> bool:
    """True if the payload has results apart from its errors."""
    other_fields = {
        name: value
        for name, value in payload.items()
        if name not in ("__typename", "errors", "warnings")
    }
    return any(other_fields.values())


def _is_validate_only(request: Any) -> bool:
    variables = [*request["variables"].values()] if isinstance(request, dict) else []
    options = [value.get("options") for value in variables if isinstance(value, dict)]
    return any(isinstance(value, dict) and value.get("validateOnly") is True for value in options)


@contextmanager
def open_fuzz_target(
    url: str, folder: Path
) -> Iterator[tuple[FuzzTarget, Callable[[Awaitable[None]], None]]]:
    with asyncio.Runner() as runner:
        target = runner.run(FuzzTarget.create(url, folder))
        logging.getLogger().addHandler(target.error_recorder)

        def run(awaitable: Awaitable[None]) -> None:
            runner.run(awaitable)  # type: ignore[arg-type]

        try:
            yield target, run
            assert not target.failures, "\n\n".join(["", *target.failures.values()])
            run(target.assert_consistent())
        finally:
            logging.getLogger().removeHandler(target.error_recorder)
            run(target.close())


@pytest.fixture(params=store_fixtures.STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return store_fixtures.copy_sqlite_template(
            request.getfixturevalue("sqlite_template"), tmp_path
        )
    return str(request.getfixturevalue("postgres"))


def test_random_values_for_any_field_are_answered_or_refused(url: str, tmp_path: Path) -> None:
    with open_fuzz_target(url, tmp_path) as (target, run):
        users = some.sampled_from([*["ada"] * 8, *["root"] * 3, "reader", "nobody"])

        @SETTINGS
        @given(some.data())
        def check_example(data: some.DataObject) -> None:
            request = data.draw(random_requests(GRAPHQL, target.known))
            events = "text/event-stream" if request["query"].startswith("subscription") else ""
            body = json.dumps(request).encode()
            run(target.check_request(data.draw(users), request, body, events))

        check_example()
    assert target.code_counts["OK"] > EXAMPLE_COUNT / 5, "too little gets through to test anything"


BODY_MEMBERS = ("query", "variables", "operationName", "extensions", "query", "\0")
QUERIES = ("{ __typename }", "{ viewer { role } }", "{ nope }", "mutation", *ODD_TEXTS)


@some.composite
def random_bodies(draw: some.DrawFn) -> bytes:
    """Valid, nearly valid and invalid JSON bodies."""
    names = draw(some.lists(some.sampled_from(BODY_MEMBERS), max_size=4))
    value: Any = {name: draw_json_value(draw) for name in names}
    match draw(some.integers(0, 3)):
        case 0:
            value = draw_json_value(draw)
        case 1:
            value["query"] = draw(some.sampled_from(QUERIES))
        case 2:
            value = {"query": draw(some.sampled_from(QUERIES[:3])), "variables": {}}
    body = json.dumps(value).encode()
    match draw(some.integers(0, 5)):
        case 0:
            return body[: draw(some.integers(0, len(body)))]
        case 1:
            position = draw(some.integers(0, len(body)))
            return body[:position] + draw(some.binary(max_size=3)) + body[position:]
        case 2:
            return draw(some.binary(max_size=40))
    return body


def test_random_body_is_answered_or_refused(url: str, tmp_path: Path) -> None:
    with open_fuzz_target(url, tmp_path) as (target, run):
        users = some.sampled_from(["ada", "nobody"])

        @settings(SETTINGS, max_examples=3 * SETTINGS.max_examples)  # few bodies are documents
        @given(some.data())
        def check_example(data: some.DataObject) -> None:
            run(target.check_request(data.draw(users), None, data.draw(random_bodies())))

        check_example()
    assert len(target.code_counts) > 3, target.code_counts

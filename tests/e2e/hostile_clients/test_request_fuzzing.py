"""Fuzz tests: each request gets a response code, without internal errors or partial changes."""

import asyncio
import json
import logging
import os
import secrets
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Self

import httpx
import pytest
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
from models.store.columns import select_columns
from models.store.database import Database
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.admin import tasks
from resolvers.admin.setting_definitions import DEFINITIONS
from resolvers.auth import authentication
from tests.conftest import (
    TEST_OPTIONS,
    GraphQLClient,
    ManualClock,
    deliver_to,
    make_api_key,
    make_client,
)
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.attacks.random_requests import (
    KnownValues,
    draw_body,
    draw_request,
)
from tests.support.mail.multipart_message import ATTACHMENTS, build_message
from tests.support.stores import store_fixtures
from tests.support.targets.target_objects import create_target_objects
from tests.support.time_limits import HANG_SECONDS

IS_LONG_RUN = "LONG" in os.environ
REQUEST_COUNT = 5000 if IS_LONG_RUN else 500
SEED = secrets.randbits(32) if IS_LONG_RUN else 1
GRAPHQL = schema._schema  # noqa: SLF001 - no public access to the types
REQUESTS_PER_STORE = 250
MIN_SUCCESS_SHARE = 0.09  # of the requests
CALLERS = [*["ada"] * 4, *["root"] * 4, *["boss"] * 2, "reader", "nobody"]
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
    response = AppResponse()
    request_messages = [{"type": "http.request", "body": body, "more_body": False}]
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

    stream_started = asyncio.Event()

    async def receive_message() -> dict[str, Any]:
        if request_messages:
            return request_messages.pop()
        await stream_started.wait()
        await asyncio.sleep(SILENT_STREAM_LIMIT)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            content_type = dict(message["headers"])[b"content-type"].decode()
            response.status, response.media_type = message["status"], content_type.partition(";")[0]
            if response.media_type == "text/event-stream":
                stream_started.set()
        response.body += message.get("body", b"")

    async with asyncio.timeout(HANG_SECONDS):
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


async def create_known_values(
    environment: Environment, ada: GraphQLClient, bob: GraphQLClient
) -> KnownValues:
    """Create mail and objects of each kind of two accounts, and return their ids and texts."""
    for client in (ada, bob):
        for number in range(3):
            await deliver_to(client, f"News {number}")
    await deliver_to(ada, build_message(ATTACHMENTS[2:7]))
    mailboxes = [
        await client.load_mailbox(path) for client in (ada, bob) for path in ("INBOX", "Trash")
    ]
    result = await ada(
        "{ viewer { user { cursor messages { nodes { id emailId thread { id } "
        "attachments { id } } } } } }"
    )
    user = result["viewer"]["user"]
    query = select(*select_columns(User)).where(col(User.username).in_(["ada", "bob"]))
    users = {row.username: row for row in await environment.database.read(query)}
    objects = [
        await create_target_objects(environment, users[name], f"{name}@example.org", users[sharer])
        for name, sharer in (("ada", "bob"), ("bob", "ada"))
    ]
    ids_by_type = defaultdict[str, list[str]](list)
    for target in objects:
        for kind, key in target.ids_by_kind.items():
            ids_by_type[kind].append(global_ids.encode(kind, key))
    for node in user["messages"]["nodes"]:
        ids_by_type["Message"].append(node["id"])
        ids_by_type["Thread"].append(node["thread"]["id"])
        ids_by_type["Attachment"] += [file["id"] for file in node["attachments"]]
    ids_by_type["Mailbox"] += [global_ids.encode("Mailbox", row.id) for row in mailboxes]
    email_ids = tuple(node["emailId"] for node in user["messages"]["nodes"])
    texts_by_name = {
        "emailId": email_ids,
        "objectId": [str(row.object_id) for row in mailboxes],
        "key": [*DEFINITIONS],
    }
    return KnownValues((user["cursor"],), ids_by_type, email_ids, texts_by_name)


@dataclass
class FuzzReport:
    """What the responses of a test were like, and the failures."""

    error_recorder: ErrorRecorder = field(default_factory=ErrorRecorder)
    failures: dict[str, str] = field(default_factory=dict)
    request_count: int = 0
    codes: set[str] = field(default_factory=set)  # of all errors
    response_count: int = 0  # responses without errors
    success_count: int = 0  # requests whose root fields all returned results without payload errors
    unauthenticated_count: int = 0  # requests whose credential was revoked before


@dataclass
class FuzzTarget:
    """A database with accounts and their mail, and an app on it."""

    report: FuzzReport
    environment: Environment
    app: Starlette
    known: KnownValues
    headers_by_user: dict[str, dict[str, str]]
    known_findings: set[str]  # objects that the consistency check reported before the requests
    user_id_by_name: dict[str, int]  # of the users in `headers_by_user` that have an account
    key_count: int = 0  # of keys that replace revoked ones
    needs_new_store: bool = False  # an account of the callers was deleted or locked

    @classmethod
    async def create(cls, url: str, folder: Path, report: FuzzReport) -> Self:
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
        boss = await make_domain_admin(environment, http, "boss", [*AdminPermission])
        known = await create_known_values(environment, ada, bob)
        # the objects are inserted as rows, so counters and references do not fit
        findings = (await check_consistency(environment, repair=True)).to_json()["findings"]
        root_key = await make_api_key(environment, "root", role=Role.ROOT, scopes=[Scope.FULL])
        reader_options = {"user_id": ada.user.id, "role": Role.USER, "scopes": [Scope.FULL]}
        reader_key = await make_api_key(environment, "reader", read_only=True, **reader_options)
        headers_by_user = {
            "ada": ada.headers,
            "boss": boss.headers,
            "root": {"Authorization": f"Bearer {root_key}"},
            "reader": {"Authorization": f"Bearer {reader_key}"},
            "nobody": {},
        }
        await http.aclose()
        known_findings = {finding["object"] for finding in findings}
        user_ids = {"ada": ada.user.id, "boss": boss.user.id, "reader": ada.user.id}
        return cls(report, environment, app, known, headers_by_user, known_findings, user_ids)

    async def close(self) -> None:
        await authentication.wait_for_background_tasks(self.environment)
        await self.environment.object_store.close()
        await self.environment.database.close()

    async def renew_credential(self, name: str) -> None:
        """Replace the credential that an earlier request has revoked, if the account exists."""
        columns: dict[str, Any] = {"role": Role.ROOT, "scopes": [Scope.FULL]}
        if user_id := self.user_id_by_name.get(name):
            query = select(*select_columns(User)).where(col(User.id) == user_id)
            user = next(iter(await self.environment.database.read(query)), None)
            if user is None or not user.active or user.suspended:
                self.needs_new_store = True
                return
            columns |= {"user_id": user_id, "role": user.role, "read_only": name == "reader"}
        self.key_count += 1
        key = await make_api_key(self.environment, f"{name}{self.key_count}", **columns)
        self.headers_by_user[name] = {"Authorization": f"Bearer {key}"}

    async def count_events(self) -> int:
        """Return the number of events in the journal."""
        (row,) = await self.environment.database.read(
            select(func.sum(col(Stream.last)).label("all"))
        )
        return int(row.all)

    async def check_request(self, user: str, request: Any, body: bytes, events: str = "") -> None:
        """Send a request and record a failure. Replace a credential that was revoked before."""
        recorder = self.report.error_recorder
        count_before, message_count = await self.count_events(), len(recorder.messages)
        headers = self.headers_by_user[user] | ({"Accept": events} if events else {})
        codes: set[str] = set()
        try:
            response = await send_request(self.app, body, headers)
            await authentication.wait_for_background_tasks(self.environment)
            unchanged = await self.count_events() == count_before
            codes = _error_codes(response)
            failure = self._find_failure(
                response, request, by_root=user == "root", unchanged=unchanged
            )
        except Exception as error:  # noqa: BLE001 - a bug, which is reported with its input
            failure = repr(error)
        logged = "\n".join(recorder.messages[message_count:])
        if failure or logged:
            field_name = (
                request["query"].partition(" it: ")[2][:20] if isinstance(request, dict) else ""
            )
            signature = "\n".join([field_name, *(logged or failure).splitlines()[-3:]])
            self.report.failures.setdefault(signature, f"{user}: {body!r}\n{failure}\n{logged}")
        if "UNAUTHENTICATED" in codes and self.headers_by_user[user]:
            self.report.unauthenticated_count += 1
            await self.renew_credential(user)

    def _find_failure(
        self, response: AppResponse, request: Any, *, by_root: bool, unchanged: bool
    ) -> str:
        text, results = response.body.decode(), response.results
        self.report.request_count += 1
        self.report.codes |= _error_codes(response)
        self.report.response_count += not any("errors" in result for result in results)
        self.report.success_count += any(map(_is_successful, results))
        if response.status >= 500 or "INTERNAL_SERVER_ERROR" in text:
            return f"{response.status} {text[:2000]}"
        return "" if unchanged else _unwanted_change(results, request, by_root=by_root)

    async def assert_consistent(self) -> None:
        """Assert that the requests have left the database consistent."""
        async with asyncio.timeout(HANG_SECONDS):
            while await tasks.run_next_task(self.environment):
                pass
        report = (await check_consistency(self.environment)).to_json()
        findings = [
            finding
            for finding in report["findings"]
            if finding["object"] not in self.known_findings
        ]
        assert not findings
        messages = self.report.error_recorder.messages
        assert not messages, messages


def _error_codes(response: AppResponse) -> set[str]:
    return {
        error["extensions"]["code"]
        for result in response.results
        for error in result.get("errors") or ()
    }


def _is_successful(result: dict[str, Any]) -> bool:
    """True if all root fields returned a result, and no error of a mutation."""
    values = (result.get("data") or {"it": None}).values()
    return not any(
        value is None or (isinstance(value, dict) and value.get("errors")) for value in values
    )


def _unwanted_change(results: list[Any], request: Any, *, by_root: bool) -> str:
    """Return why this response does not allow that something changed; empty if it does."""
    for result in results:
        if any(len(error.get("path") or ()) > 1 for error in result.get("errors") or ()):
            continue  # the mutation was done, and a selected field failed
        payloads = [*(result.get("data") or {"it": None}).values()]
        reasons = [_failure_without_change(payload, by_root=by_root) for payload in payloads]
        is_atomic = isinstance(request, dict) and "@atomic" in request["query"]
        if any(reasons) if is_atomic else all(reasons):
            return f"{' '.join(reasons)}, and it changed something: {result}"
    if _is_validate_only(request):
        return f"it was only validated, and changed something: {results}"
    return ""


def _failure_without_change(payload: Any, *, by_root: bool) -> str:
    """Return the kind of failure if this result of a root field means that nothing changed."""
    if by_root and isinstance(payload, list):
        return ""  # nodes: reading objects of other users is recorded in the audit log
    if not isinstance(payload, dict):
        return "refused"
    names = {error.get("__typename") for error in payload.get("errors") or ()}
    if names == {"AuthenticationFailedError"}:
        return ""  # a failed sign-in is recorded in the log of the account
    return "failed" if names and not _has_results(payload) else ""


def _has_results(payload: dict[str, Any]) -> bool:
    """True if the payload has results apart from its errors."""
    other_fields = {
        name: value
        for name, value in payload.items()
        if name not in ("__typename", "errors", "warnings")
    }
    return any(other_fields.values())


def _is_validate_only(request: Any) -> bool:
    """True if nothing may change: all mutations are dry runs, or one of an `@atomic` request is."""
    if not isinstance(request, dict):
        return False
    inputs = [
        value
        for name, value in request["variables"].items()
        if f"input: ${name})" in request["query"] and isinstance(value, dict)
    ]
    options = [value.get("options") for value in inputs]
    dry_runs = [isinstance(value, dict) and value.get("validateOnly") is True for value in options]
    return any(dry_runs) if "@atomic" in request["query"] else bool(dry_runs) and all(dry_runs)


@contextmanager
def open_fuzz_target(
    url: str, folder: Path, report: FuzzReport
) -> Iterator[tuple[FuzzTarget, Callable[[Awaitable[None]], None]]]:
    """Create a target, and check it at the end."""
    with asyncio.Runner() as runner:
        target = runner.run(FuzzTarget.create(url, folder, report))
        logging.getLogger().addHandler(report.error_recorder)

        def run(awaitable: Awaitable[None]) -> None:
            runner.run(awaitable)  # type: ignore[arg-type]

        try:
            yield target, run
            assert not report.failures, "\n\n".join(["", *report.failures.values()])
            run(target.assert_consistent())
        finally:
            logging.getLogger().removeHandler(report.error_recorder)
            run(target.close())


@pytest.fixture(params=store_fixtures.STORES)
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Return a function that makes an empty store and returns its URL."""
    if request.param == "sqlite":
        template = request.getfixturevalue("sqlite_template")

        def copy_template() -> str:
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            return store_fixtures.copy_sqlite_template(template, folder)

        return copy_template
    url = str(request.getfixturevalue("postgres"))
    return lambda: url  # the target empties it


def test_random_values_for_any_field_are_answered_or_refused(
    make_store: Callable[[], str], tmp_path: Path
) -> None:
    numbers, report = iter(range(REQUEST_COUNT)), FuzzReport()
    while report.request_count < REQUEST_COUNT and not report.failures:
        with open_fuzz_target(make_store(), tmp_path, report) as (target, run):
            for number in islice(numbers, REQUESTS_PER_STORE):
                random = Random(SEED + number)  # noqa: S311 - a fixed sequence
                request = draw_request(random, GRAPHQL, target.known)
                user = random.choice(CALLERS)
                events = "text/event-stream" if request["query"].startswith("subscription") else ""
                run(target.check_request(user, request, json.dumps(request).encode(), events))
                if target.needs_new_store:
                    break
    assert report.success_count > REQUEST_COUNT * MIN_SUCCESS_SHARE, report.success_count
    assert report.unauthenticated_count < REQUEST_COUNT / 20


def test_random_body_is_answered_or_refused(make_store: Callable[[], str], tmp_path: Path) -> None:
    report = FuzzReport()
    with open_fuzz_target(make_store(), tmp_path, report) as (target, run):
        for number in range(3 * REQUEST_COUNT):  # few bodies are documents
            random = Random(SEED + number)  # noqa: S311 - a fixed sequence
            user = random.choice(["ada", "nobody"])
            run(target.check_request(user, None, draw_body(random)))
    assert report.response_count > REQUEST_COUNT / 5
    assert len(report.codes) > 2, report.codes

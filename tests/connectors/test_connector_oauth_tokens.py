"""Accounts elsewhere that are signed in to by OAuth 2.0: tokens kept, refreshed, refused."""

import asyncio
import json
import logging
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest

from mail.connectors.remote_server import ConnectorStage
from mail.network.outbound_http import NetworkPolicy
from models.admin.tasks import TaskState
from models.connectors import ConnectorProtocol, ConnectorSecurity
from models.errors import InvalidInput
from models.runtime.environment import Environment
from resolvers.connectors import check, credentials
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.worker import ConnectorWorker
from tests.conftest import Client, Clock, raw_message
from tests.support.accounts.key_value_operations import limit
from tests.support.mail_servers.imap_and_pop3_servers import ImapRemote, Message, PopRemote, open_at
from tests.support.mail_servers.scanner_servers import http
from tests.support.operations.connector_operations import changed, may, newest, row_of, stored
from tests.support.servers.webhook_receiver import Got, Receiver, receiving

pytestmark = pytest.mark.usefixtures("examined")
REFRESH, CLIENT, OTHER = "refresh-wörd/1", "client-wörd/1", "refresh-other"
MECHANISMS = ("XOAUTH2", "OAUTHBEARER")
DENIED = "[AUTHENTICATIONFAILED] no such token"


@dataclass
class Judging:
    """Which tokens are good, and what is said of others, with the token behind it."""

    good: set[str] = field(default_factory=lambda: {"access-1"})
    says: str = DENIED
    tried: list[str] = field(default_factory=list)

    def judged(self, line: bytes) -> bytes | None:
        """What is said to an answer of SASL that is not as it should be."""
        said = b64decode(line).decode()
        who, word, end, rest = said.split("\x01")
        assert (who in {"user=ada", "n,a=ada,"}, end, rest) == (True, "", "")
        assert word.startswith("auth=Bearer ")
        token = word.removeprefix("auth=Bearer ")
        self.tried.append(token)
        return None if token in self.good else f"{self.says} {token}".encode()


@dataclass
class Imap(ImapRemote):
    """A server of IMAP that takes tokens."""

    judging: Judging = field(default_factory=Judging)

    async def answer(self, command: str, tag: bytes, usual: bytes, *line: Any) -> bool:
        if command == "AUTHENTICATE" and (said := self.judging.judged(self.heard[-1])):
            usual = tag + b" NO " + said + b"\r\n"
        return await super().answer(command, tag, usual, *line)


@dataclass
class Pop(PopRemote):
    """A server of POP3 that takes tokens."""

    judging: Judging = field(default_factory=Judging)

    async def answer(self, command: str, tag: bytes, usual: bytes, *line: Any) -> bool:
        if command == "SASL" and (said := self.judging.judged(self.heard[-1])):
            usual = b"-ERR " + said + b"\r\n"
        return await super().answer(command, tag, usual, *line)


@pytest.fixture(params=[Imap, Pop], ids=["IMAP", "POP3"])
async def remote(request: pytest.FixtureRequest, world: Environment) -> AsyncIterator[Any]:
    limit(world, connectors_private=True)
    async with open_at(request.param({1: Message(raw_message("One"))})) as one:
        yield one


@pytest.fixture
async def imap(world: Environment) -> AsyncIterator[Imap]:
    limit(world, connectors_private=True)
    one = Imap({1: Message(raw_message("One"))})
    async with open_at(one):
        yield one


@pytest.fixture
async def tokens() -> AsyncIterator[Receiver]:
    """A server of tokens: each is another one, and lives for an hour."""
    async with receiving() as one:

        async def answer(_got: Got, writer: asyncio.StreamWriter) -> None:
            writer.write(token(f"access-{len(one.got)}"))

        one.answer = answer
        yield one


def token(access: Any, **more: Any) -> bytes:
    """An answer with a token."""
    told = {"access_token": access, "token_type": "Bearer", "expires_in": 3600, **more}
    return http(json.dumps(told).encode())


def account(remote: Imap | Pop, tokens: Receiver, mechanism: str = "XOAUTH2") -> dict[str, Any]:
    """What a connector is made of."""
    return {
        "protocol": remote.protocol,
        "host": "127.0.0.1",
        "port": remote.port,
        "security": ConnectorSecurity.PLAIN,
        "username": "ada",
        "mechanism": mechanism,
        "remote_timeout": timedelta(seconds=8),
        "oauth": {
            "token_url": f"http://127.0.0.1:{tokens.port}/token?x=1",
            "client_id": "merganser",
            "client_secret": CLIENT,
            "scope": "mail read",
        },
    }


async def made(ada: Client, remote: Imap | Pop, tokens: Receiver, *mechanism: str) -> int:
    given = {**account(remote, tokens, *mechanism), "interval": None}
    return await connector_mutations.create_connector(may(ada), None, given, REFRESH)


async def ran(world: Environment, key: int, **gate: Any) -> Any:
    """Run it now; the run."""
    await changed(world, key, next_run_at=world.now())
    worker = ConnectorWorker(world, NetworkPolicy(**{"allows_private": True, **gate}))
    await connector_worker.start_due_runs(worker)
    await asyncio.gather(*worker.running)
    return await newest(world, key)


async def kept(world: Environment, key: int) -> dict[str, Any]:
    """What is sealed."""
    return credentials.open_secret(world, key, (await row_of(world, key)).secret)


async def hidden(
    world: Environment, key: int, caplog: pytest.LogCaptureFixture, *more: object
) -> None:
    """Nothing that is secret is shown."""
    told = f"{await newest(world, key)} {await row_of(world, key)} {more}"
    told += " ".join(str(vars(record)) for record in caplog.records)
    for word in ("refresh-w", "client-w", "access-", "wörd", "w%C3%B6rd"):
        assert word not in told


def form(got: Got) -> dict[str, str]:
    assert got.headers["content-type"] == "application/x-www-form-urlencoded"
    return dict(parse_qsl(got.raw.decode(), strict_parsing=True))


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_a_token_is_asked_for_and_kept_until_it_ends_soon(
    ada: Client, remote: Any, tokens: Receiver, clock: Clock, mechanism: str
) -> None:
    world, key = ada.world, await made(ada, remote, tokens, mechanism)
    run = await ran(world, key)
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, 1), run.log
    assert await stored(world) == {"INBOX": ["One"]}
    assert form(tokens.got[0]) == {
        "grant_type": "refresh_token", "refresh_token": REFRESH, "client_id": "merganser",
        "client_secret": CLIENT, "scope": "mail read",
    }  # fmt: skip
    assert tokens.got[0].path == "/token?x=1"
    clock.tick(minutes=57, seconds=59)
    assert (await ran(world, key)).state is TaskState.SUCCEEDED
    assert len(tokens.got) == 1
    clock.tick(seconds=1)
    remote.judging.good = {"access-2"}
    assert (await ran(world, key)).state is TaskState.SUCCEEDED
    assert remote.judging.tried == ["access-1", "access-1", "access-2"]
    known = await kept(world, key)
    assert (known["password"], known["client"], known["access"]) == (REFRESH, CLIENT, "access-2")
    assert datetime.fromisoformat(known["ends"]) == world.now() + timedelta(hours=1)
    sealed = (await row_of(world, key)).secret
    assert not any(word in sealed for word in ("access", "refresh", "client"))


@pytest.mark.parametrize("lives", [None, "3600", 0, -1, 1e99, True])
async def test_a_life_that_is_none_is_the_usual_or_short(
    ada: Client, imap: Imap, tokens: Receiver, lives: Any
) -> None:
    tokens.answer = token("access-1", expires_in=lives)
    key = await made(ada, imap, tokens)
    run = await ran(ada.world, key)
    assert run.state is TaskState.SUCCEEDED, run.log
    ends = datetime.fromisoformat((await kept(ada.world, key))["ends"])
    assert ends <= ada.world.now() + timedelta(hours=1)


async def test_a_refresh_token_that_is_replaced_is_kept(
    ada: Client, imap: Imap, tokens: Receiver, clock: Clock
) -> None:
    imap.judging.good = {"access-1", "access-2", "access-3"}
    key = await made(ada, imap, tokens)
    answers: list[dict[str, Any]] = [{"refresh_token": OTHER}, {}, {"refresh_token": 7}]
    for nth, more in enumerate(answers, 1):
        tokens.answer = token(f"access-{nth}", **more)
        assert (await ran(ada.world, key)).state is TaskState.SUCCEEDED
        assert (await kept(ada.world, key))["password"] == OTHER
        clock.tick(hours=1)
    assert [form(got)["refresh_token"] for got in tokens.got] == [REFRESH, OTHER, OTHER]


async def test_where_a_kept_token_is_refused_another_is_asked_for_once(
    ada: Client, remote: Any, tokens: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    world, key = ada.world, await made(ada, remote, tokens)
    assert (await ran(world, key)).state is TaskState.SUCCEEDED
    remote.judging.good = {"access-2"}
    run = await ran(world, key)
    assert run.state is TaskState.SUCCEEDED, run.log
    assert remote.judging.tried == ["access-1", "access-1", "access-2"]
    remote.judging.good = set()
    with caplog.at_level(logging.DEBUG):
        run = await ran(world, key)
    assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN")
    assert "no such token" in run.error
    assert remote.judging.tried[3:] == ["access-2", "access-3"]
    assert len(tokens.got) == 3
    await hidden(world, key, caplog)


async def test_a_token_that_is_new_or_refused_for_now_is_not_replaced(
    ada: Client, remote: Any, tokens: Receiver
) -> None:
    remote.judging.good = set()
    key = await made(ada, remote, tokens)
    later = "[UNAVAILABLE]" if remote.protocol is ConnectorProtocol.IMAP else "[SYS/TEMP]"
    for says in (DENIED, f"{later} try again"):
        remote.judging.says = says
        run = await ran(ada.world, key)
        assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN")
    assert remote.judging.tried == ["access-1"] * 2


@pytest.mark.parametrize(
    "case",
    [
        ("400 Bad", {"error": "invalid_grant", "error_description": "It is over."}, "It is over."),
        ("400 Bad", {"error": "invalid_grant"}, "invalid_grant"),
        ("401 Bad", {"error": "x", "error_description": f"{CLIENT}, not {REFRESH}"}, "…, not …"),
        ("400 Bad", {"error": f"client-w%C3%B6rd%2F1 {REFRESH}"}, "… …"),
        ("400 Bad", {"error": "x" * 290 + f" {REFRESH}"}, "x …"),
        ("400 Bad", {"error": "x" * 280 + f" {CLIENT} {REFRESH}"}, "x … …"),
        ("400 Bad", {"error": {"a": [REFRESH]}}, "…"),
        ("400 Bad", {"error": "two\r\nlines\0"}, "two lines"),
        ("500 Bad", {}, "status 500"),
    ],
)
async def test_a_refusal_is_told_in_the_words_of_the_server(
    ada: Client,
    imap: Imap,
    tokens: Receiver,
    caplog: pytest.LogCaptureFixture,
    case: tuple[str, dict[str, Any], str],
) -> None:
    status, told, words = case
    tokens.answer = http(json.dumps(told).encode(), status)
    key = await made(ada, imap, tokens)
    with caplog.at_level(logging.DEBUG):
        run = await ran(ada.world, key)
    assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN")
    assert run.error.startswith("the server of tokens: ")
    assert words in run.error
    assert run.error.isprintable()
    row = await row_of(ada.world, key)
    assert (row.last_error, row.failures) == (run.error, 1)
    assert (imap.sessions, (await kept(ada.world, key))["password"]) == (set(), REFRESH)
    await hidden(ada.world, key, caplog)


async def drips(_got: Got, writer: asyncio.StreamWriter) -> None:
    """Say a byte now and then."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def waits(_got: Got, _writer: asyncio.StreamWriter) -> None:
    """Say nothing."""
    await asyncio.sleep(5)


REDIRECT = b"HTTP/1.1 302 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (waits, "no answer within 0.5 seconds"),
        (drips, "no answer within 0.5 seconds"),
        (http(b"<html>"), "status 200, and no JSON"),
        (http(b"[1]"), "status 200, and no JSON"),
        (http(b"\xff\xfe"), "status 200, and no JSON"),
        (http(b"[" * 60_000), "status 200, and no JSON"),
        (http(b""), "status 200, and no JSON"),
        (REDIRECT, "status 302, and no JSON"),
        (http(b" " * (1 << 20)), "bytes"),
        (b"220 mail.example.org ESMTP\r\n\r\n", "the answer is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "ends early"),
        (token("access-\r\nA1 LOGOUT"), "status 200"),
        (token("access-\0"), "status 200"),
        (token(""), "status 200"),
        (token("access-" + "x" * 20_000), "status 200"),
        (token(["access-1"]), "status 200"),
    ],
)
async def test_a_server_of_tokens_that_is_none_is_told_of(
    ada: Client, imap: Imap, tokens: Receiver, answer: Any, words: str
) -> None:
    tokens.answer = answer
    key = await made(ada, imap, tokens)
    async with asyncio.timeout(5):
        run = await ran(ada.world, key, timeout_seconds=0.5)
    assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN"), run.log
    assert run.error.startswith("the server of tokens: ")
    assert words in run.error
    assert "access" not in run.error
    assert (imap.sessions, "access" in await kept(ada.world, key)) == (set(), False)


async def test_tokens_are_not_asked_for_inside(ada: Client, imap: Imap, tokens: Receiver) -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    world, key = ada.world, await made(ada, imap, tokens)
    await changed(world, key, security=ConnectorSecurity.TLS)
    assert "inside" in (await ran(world, key, allows_private=False)).error
    oauth = {**(await row_of(world, key)).oauth}
    oauth["token_url"] = f"http://login.example.com:{tokens.port}/token"
    await changed(world, key, oauth=oauth)
    run = await ran(world, key, allows_private=False, resolve=resolve)
    assert (run.stage, run.error) == ("LOGIN", "the server of tokens: the host is inside")
    assert (tokens.got, imap.sessions) == ([], set())
    limit(world, connectors_private=False)
    given = {**account(imap, tokens), "host": "mail.example.com", "security": ConnectorSecurity.TLS}
    for url in (oauth["token_url"], "https://127.0.0.1/", "https://[::1]/", "https://x.internal/"):
        given["oauth"]["token_url"] = url
        with pytest.raises(InvalidInput) as refused:
            await connector_mutations.create_connector(may(ada), None, given, REFRESH)
        assert refused.value.path == ["oauth", "tokenUrl"]


async def test_another_password_forgets_what_was_got_with_the_last(
    ada: Client, imap: Imap, tokens: Receiver
) -> None:
    world, key = ada.world, await made(ada, imap, tokens)
    await ran(world, key)
    assert (await kept(world, key))["access"] == "access-1"
    await connector_mutations.update_connectors(may(ada), [key], {"name": "Other"}, None)
    assert (await kept(world, key))["access"] == "access-1"
    await connector_mutations.update_connectors(may(ada), [key], {}, OTHER)
    assert await kept(world, key) == {"password": OTHER, "client": CLIENT}
    imap.judging.good = {"access-2"}
    assert (await ran(world, key)).state is TaskState.SUCCEEDED
    assert form(tokens.got[1])["refresh_token"] == OTHER


# trying


async def test_an_account_is_tried_with_a_token_and_nothing_is_kept(
    ada: Client, remote: Any, tokens: Receiver
) -> None:
    found = await check.check_new_connector(may(ada), account(remote, tokens), REFRESH)
    assert (found.failure, all(one.ok for one in found.stages)) == (None, True)
    assert form(tokens.got[0])["client_secret"] == CLIENT
    assert remote.judging.tried == ["access-1"]
    remote.judging.good = set()
    found = await check.check_new_connector(may(ada), account(remote, tokens), REFRESH)
    assert found.failure is not None
    assert [one.stage for one in found.stages if not one.ok] == [ConnectorStage.LOGIN]
    assert "access-" not in f"{found} {found.failure}"
    assert len(tokens.got) == 2
    told = {"error": "invalid_grant", "error_description": f"no {REFRESH}"}
    tokens.answer = http(json.dumps(told).encode(), "400 Bad")
    found = await check.check_new_connector(may(ada), account(remote, tokens), REFRESH)
    assert [(one.stage, one.ok) for one in found.stages] == [(ConnectorStage.LOGIN, False)]
    assert found.failure is not None
    assert (found.failure.is_permanent, str(found.failure)) == (True, "the server of tokens: no …")
    assert len(remote.judging.tried) == 2


async def test_one_that_is_stored_is_tried_with_what_is_kept(
    ada: Client, remote: Any, tokens: Receiver
) -> None:
    world, key = ada.world, await made(ada, remote, tokens)
    for _ in range(2):
        found = await check.check_stored_connector(may(ada), key)
        assert (found.failure, all(one.ok for one in found.stages)) == (None, True)
    assert len(tokens.got) == 1
    remote.judging.good = {"access-2"}
    assert (await check.check_stored_connector(may(ada), key)).failure is None
    assert (await kept(world, key))["access"] == "access-2"
    remote.judging.good = set()
    found = await check.check_stored_connector(may(ada), key)
    assert [one.stage for one in found.stages if not one.ok] == [ConnectorStage.LOGIN]
    assert found.stages[0].stage is ConnectorStage.RESOLVE
    await connector_mutations.update_connectors(may(ada), [key], {}, OTHER)
    tokens.answer = http(b'{"error": "invalid_grant"}', "400 Bad")
    found = await check.check_stored_connector(may(ada), key)
    assert [(one.stage, one.ok) for one in found.stages] == [(ConnectorStage.LOGIN, False)]

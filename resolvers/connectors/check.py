"""Check whether an account on another server can be fetched, stage by stage; nothing is stored."""

import ssl
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.connectors import mailbox_mapping
from mail.connectors.remote_server import Failure, Server, Stage
from mail.connectors.session_thread import Session, session
from mail.network.outbound_http import Gate
from models.connectors import Connector, Protocol, Security
from models.errors import RateLimited, found
from models.store.columns import picked
from resolvers.connectors import credentials
from resolvers.connectors import validation as connector_validation
from resolvers.connectors.loaders import visible
from resolvers.context import Context

STAGES = (Stage.RESOLVE, Stage.CONNECT, Stage.TLS, Stage.GREETING, Stage.LOGIN, Stage.LIST)
SHOWN = 1000
AT_ONCE = 8  # of one process
PATIENCE = 30.0  # seconds without data, for stored connectors
_UNDER_WAY: set[object] = set()


@dataclass(frozen=True, slots=True)
class Tried:
    """The result of one stage of a check."""

    stage: Stage
    ok: bool
    said: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """The stages that were tried, and the capabilities and mailboxes of the server."""

    stages: Sequence[Tried]
    capabilities: Sequence[str] = ()
    folders: Sequence[str] = ()
    failure: Failure | None = None


async def check(
    ctx: Context,
    given: Mapping[str, Any],
    password: str,
    *,
    trial: bool = False,
    trust: ssl.SSLContext | None = None,
) -> Checked:
    """Connect, sign in and list the mailboxes of an account on another server.

    With `validate_only`, only the fields are validated. Raises Invalid if a field is wrong, and
    RateLimited if eight checks are running. A failure of the server is part of the result.
    """
    options = ctx.world.options
    values = connector_validation.checked(given, {}, options)
    word = connector_validation.secret(password)
    if trial:
        return Checked([])
    gate = Gate.of(options, private=options.connectors_private)
    oauth = given.get("oauth")
    with _one_of(AT_ONCE):
        try:
            if oauth:
                known = {"password": word, "client": oauth.get("client_secret")}
                word = (await credentials.asked(values["oauth"], known, gate))["access_token"]
        except Failure as problem:
            return Checked(_until([], problem), failure=problem)
        server = _server(values, word)
        return await _tried(session(server, gate, options.message_max, trust), _of(values))


async def check_stored(
    ctx: Context, connector_id: int, *, trust: ssl.SSLContext | None = None
) -> Checked:
    """Check one of the viewer's connectors with its stored credential.

    Raises NotFound, and RateLimited if eight checks are running.
    """
    asked = select(*picked(Connector)).where(visible(ctx), col(Connector.id) == connector_id)
    row = found(next(iter(await ctx.read(asked)), None), str(connector_id))
    options = ctx.world.options
    gate = Gate.of(options, private=options.connectors_private)
    with _one_of(AT_ONCE):
        there = credentials.signed_in(ctx.world, row, (gate, trust), PATIENCE)
        return await _tried(there, _of(row._asdict()))


@contextmanager
def _one_of(most: int) -> Generator[None]:
    """Count a check of this process while it runs. Raises RateLimited if there are too many."""
    if len(_UNDER_WAY) >= most:
        text = f"{most} accounts are being checked: try again"
        raise RateLimited(text, retry_after=timedelta(seconds=10))
    place = object()
    _UNDER_WAY.add(place)
    try:
        yield
    finally:
        _UNDER_WAY.discard(place)


def _server(values: Mapping[str, Any], word: str) -> Server:
    return Server(
        values["protocol"],
        values["host"],
        values["port"],
        values["security"],
        values["mechanism"],
        values["username"],
        word,
        float(values["remote_timeout"]),
    )


async def _tried(opens: AbstractAsyncContextManager[Session], stages: list[Stage]) -> Checked:
    try:
        async with opens as there:
            found = await there.do(there.remote.folders)
            known = sorted(there.remote.capabilities)
    except Failure as problem:
        return Checked(_until(stages, problem), failure=problem)
    names = [mailbox_mapping.remote(each) for each in found[:SHOWN]]
    return Checked([Tried(stage, ok=True) for stage in stages], known, names)


def _of(account: Mapping[str, Any]) -> list[Stage]:
    """Return the stages of a check in order.

    Without TLS there is one less, and POP3 has no list.
    """
    left = {Stage.TLS} if account["security"] == Security.PLAIN else set[Stage]()
    if account["protocol"] == Protocol.POP3:
        left.add(Stage.LIST)
    found = [stage for stage in STAGES if stage not in left]
    if account["security"] == Security.STARTTLS:
        at = found.index(Stage.TLS)
        found[at : at + 2] = [Stage.GREETING, Stage.TLS]
    return found


def _until(stages: list[Stage], problem: Failure) -> list[Tried]:
    if isinstance(problem, credentials.Unready):  # raised before a connection was opened
        return [Tried(problem.stage, ok=False, said=problem.message)]
    at = stages.index(problem.stage) if problem.stage in stages else len(stages) - 1
    passed = [Tried(stage, ok=True) for stage in stages[:at]]
    return [*passed, Tried(stages[at], ok=False, said=problem.message)]

"""List, check and run connectors for the command line."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from graph.types.global_ids import decode, encode
from mail.connectors.remote_server import Stage
from mail.network.outbound_http import Gate
from merganser.commands import user_operations
from merganser.errors import Trouble
from merganser.server.environment_factory import owner
from merganser.server.store.store_use import used_by_server
from models.admin.tasks import TaskState
from models.connectors import Connector
from models.errors import Invalid
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.store.keyset_pages import MOST, Ask, Cursor
from models.users.tables import User
from resolvers.connectors import check
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.check import Checked
from resolvers.connectors.loaders import ConnectorWhere
from resolvers.users.selection import Users

EACH = 0.2  # seconds
ALL = "`merganser connector list` shows all"

Told = Callable[[Picked], None]


@dataclass(frozen=True, slots=True)
class Named:
    """A connector that was given on the command line."""

    key: int
    name: str

    @property
    def id(self) -> str:
        """The global ID of GraphQL."""
        return encode("Connector", self.key)


@dataclass
class Ending:
    """Whether Ctrl-C was pressed, with the callback that confirms it to the operator."""

    said: Callable[[], None]
    asked: bool = False
    working: "asyncio.Task[Any] | None" = None

    def signalled(self) -> None:
        """Request a stop at the next safe point. A second interrupt cancels at once."""
        if not self.asked:
            self.asked = True
            self.said()
        elif self.working is not None:
            self.working.cancel()


@dataclass(frozen=True, slots=True)
class Order:
    """The connectors to run, and the callbacks that show their progress."""

    connectors: Sequence[Named]
    trial: bool
    began: Callable[[Named, Picked], Told]  # returns a function that takes the run's row
    ending: Ending


async def named(environment: World, text: str) -> Named:
    """Find a connector by global ID or name. Raises CommandError unless exactly one matches."""
    statement = select(*picked(Connector, {"id", "name"})).where(col(Connector.once).is_(False))
    try:
        of = col(Connector.id) == decode("Connector", text)
    except Invalid:
        of = col(Connector.name) == text
    rows = await environment.database.read(statement.where(of))
    if not rows:
        raise Trouble(f"there is no connector {text}: {ALL}")
    if len(rows) > 1:
        raise Trouble(f"{len(rows)} connectors are called {text}: say by its id which; {ALL}")
    return Named(rows[0].id, rows[0].name)


async def listed(
    environment: World, user: str | None, *, failing: bool | None = None
) -> list[dict[str, Any]]:
    """Load the connectors ordered by user, as JSON values.

    Raises CommandError if there is no such user.
    """
    users = None if user is None else Users(ids=(await user_operations.found(environment, user),))
    ctx, at, rows = owner(environment), None, list[Any]()
    where = ConnectorWhere(users, None, failing)
    while True:
        ask = Ask("connectors", MOST, at)
        page = await connector_loaders.page(ctx, where, ask, connector_loaders.SHOWN)
        rows += page.rows
        if not page.next:
            break
        at = Cursor(ask.ordering, rows[-1].user_id, rows[-1].id)
    names = await _usernames(environment)
    return [_plain(row, names.get(row.user_id)) for row in rows]


async def _usernames(environment: World) -> dict[int, str]:
    having = select(col(Connector.user_id))
    statement = select(*picked(User, {"id", "username"})).where(col(User.id).in_(having))
    return {row.id: row.username for row in await environment.database.read(statement)}


def _plain(row: Picked, username: str | None) -> dict[str, Any]:
    return {
        "id": encode("Connector", row.id),
        "name": row.name,
        "user": username,
        "protocol": row.protocol,
        "host": row.host,
        "port": row.port,
        "username": row.username,
        "active": row.active,
        "running": row.run_id is not None,
        "interval": row.interval,
        "last_run_at": row.last_run_at and row.last_run_at.isoformat(),
        "last_success_at": row.last_success_at and row.last_success_at.isoformat(),
        "next_run_at": row.next_run_at and row.next_run_at.isoformat(),
        "failures": row.failures,
        "error": row.last_error,
    }


async def checked(environment: World, text: str) -> tuple[Named, Checked]:
    """Sign in to a connector's server with the stored password, and return the stages' results.

    Raises CommandError if there is no such connector.
    """
    connector = await named(environment, text)
    return connector, await check.check_stored(owner(environment), connector.key)


async def log_of(environment: World, text: str) -> tuple[Named, list[str] | None]:
    """Load the log lines of a connector's last run; None if it never ran.

    Raises CommandError if there is no such connector.
    """
    connector = await named(environment, text)
    (lines,) = await connector_loaders.last_logs(owner(environment), [connector.key])
    return connector, lines


async def ran(environment: World, order: Order) -> list[tuple[Named, Picked]]:
    """Run the connectors one after another; return the final row of each run that began.

    The process stays registered: while it waits for a run that another process has leased,
    its heartbeats detect whether that process is dead.
    """
    done: list[tuple[Named, Picked]] = []
    async with used_by_server(environment, waits=False), _interrupted(order.ending):
        for connector in order.connectors:
            if order.ending.asked:
                break
            done.append((connector, await _ran(environment, order, connector)))
    return done


@asynccontextmanager
async def _interrupted(ending: Ending) -> AsyncGenerator[None]:
    """Handle Ctrl-C while the block runs."""
    loop, ending.working = asyncio.get_running_loop(), asyncio.current_task()
    loop.add_signal_handler(signal.SIGINT, ending.signalled)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _ran(environment: World, order: Order, connector: Named) -> Picked:
    """Start a run and follow it to its end. It runs here if no other process has leased it."""
    (key,) = await connector_mutations.start(owner(environment), [connector.key], trial=order.trial)
    gate = Gate.of(environment.options, private=environment.options.connectors_private)
    told: Told | None = None
    here: asyncio.Task[bool] | None = None
    stopped = False
    try:
        while True:
            row = await _run(environment, connector, key)
            told = told or order.began(connector, row)
            told(row)
            if (
                row.finished_at or row.stage == Stage.LISTEN
            ):  # a server goes on with IDLE until the next run is due
                if here is not None:
                    await here
                return row
            if order.ending.asked and not stopped:
                await connector_mutations.stop(owner(environment), [key])
                stopped = True
            if here is None or here.done():
                if here is not None:
                    here.result()
                here = asyncio.create_task(
                    connector_worker.run_one(environment, connector.key, gate)
                )
            await asyncio.sleep(EACH)
    finally:
        if here is not None and not here.done():
            here.cancel()
            await asyncio.gather(here, return_exceptions=True)


async def _run(environment: World, connector: Named, key: int) -> Picked:
    (row,) = await connector_loaders.runs_by_ids(owner(environment), [key])
    if row is None:
        raise Trouble(f"{connector.name} was removed while it ran")
    return row


def summary(connector: Named, row: Picked) -> dict[str, Any]:
    """The results of a run as JSON values."""
    began, ended = row.started_at or row.finished_at, row.finished_at or row.started_at
    seconds = (ended - began).total_seconds()
    return {
        "id": connector.id,
        "name": connector.name,
        "run": encode("ConnectorRun", row.id),
        "state": row.state.value,
        "listening": row.stage == Stage.LISTEN and not row.finished_at,
        "trial": row.trial,
        "seen": row.seen,
        "imported": row.imported,
        "skipped": row.skipped,
        "deleted_remote": row.deleted_remote,
        "bytes": row.bytes,
        "seconds": round(seconds, 3),
        "stage": row.stage if row.state is TaskState.FAILED else None,
        "error": row.error,
    }

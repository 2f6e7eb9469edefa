"""Connectors, as an operator at the machine lists, checks and runs them."""

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

EACH = 0.2  # seconds between two looks at a run
ALL = "`merganser connector list` shows all"

Told = Callable[[Picked], None]


@dataclass(frozen=True, slots=True)
class Named:
    """A connector that was named on the command line."""

    key: int
    name: str

    @property
    def id(self) -> str:
        """As GraphQL shows it."""
        return encode("Connector", self.key)


@dataclass
class Ending:
    """Whether somebody at the terminal wants it to end, and who says that it was heard."""

    said: Callable[[], None]
    asked: bool = False
    working: "asyncio.Task[Any] | None" = None

    def signalled(self) -> None:
        """End at the next safe point; a second time, at once."""
        if not self.asked:
            self.asked = True
            self.said()
        elif self.working is not None:
            self.working.cancel()


@dataclass(frozen=True, slots=True)
class Order:
    """Which connectors are to run, and who is told of it."""

    connectors: Sequence[Named]
    trial: bool
    began: Callable[[Named, Picked], Told]  # what is told of a run, whenever it was looked at
    ending: Ending


async def named(world: World, text: str) -> Named:
    """The connector of this id, or of this name where only one has it; Trouble."""
    asked = select(*picked(Connector, {"id", "name"})).where(col(Connector.once).is_(False))
    try:
        of = col(Connector.id) == decode("Connector", text)
    except Invalid:
        of = col(Connector.name) == text
    rows = await world.database.read(asked.where(of))
    if not rows:
        raise Trouble(f"there is no connector {text}: {ALL}")
    if len(rows) > 1:
        raise Trouble(f"{len(rows)} connectors are called {text}: say by its id which; {ALL}")
    return Named(rows[0].id, rows[0].name)


async def listed(
    world: World, user: str | None, *, failing: bool | None = None
) -> list[dict[str, Any]]:
    """The connectors there are, account by account, in plain values."""
    users = None if user is None else Users(ids=(await user_operations.found(world, user),))
    ctx, at, rows = owner(world), None, list[Any]()
    where = ConnectorWhere(users, None, failing)
    while True:
        ask = Ask("connectors", MOST, at)
        page = await connector_loaders.page(ctx, where, ask, connector_loaders.SHOWN)
        rows += page.rows
        if not page.next:
            break
        at = Cursor(ask.ordering, rows[-1].user_id, rows[-1].id)
    names = await _usernames(world)
    return [_plain(row, names.get(row.user_id)) for row in rows]


async def _usernames(world: World) -> dict[int, str]:
    having = select(col(Connector.user_id))
    asked = select(*picked(User, {"id", "username"})).where(col(User.id).in_(having))
    return {row.id: row.username for row in await world.database.read(asked)}


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


async def checked(world: World, text: str) -> tuple[Named, Checked]:
    """What becomes of signing in to this one, with the password that is stored."""
    one = await named(world, text)
    return one, await check.check_stored(owner(world), one.key)


async def log_of(world: World, text: str) -> tuple[Named, list[str] | None]:
    """The lines of the last run of this one; None where it has had none."""
    one = await named(world, text)
    (lines,) = await connector_loaders.last_logs(owner(world), [one.key])
    return one, lines


async def ran(world: World, order: Order) -> list[tuple[Named, Picked]]:
    """Run these one after another, to the end of each; those that were begun, as they ended.

    The process is registered all the time: while it waits for a run that another process holds,
    its heartbeats find out whether that process is dead.
    """
    done: list[tuple[Named, Picked]] = []
    async with used_by_server(world, waits=False), _interrupted(order.ending):
        for one in order.connectors:
            if order.ending.asked:
                break
            done.append((one, await _ran(world, order, one)))
    return done


@asynccontextmanager
async def _interrupted(ending: Ending) -> AsyncGenerator[None]:
    """Hear of Ctrl-C here."""
    loop, ending.working = asyncio.get_running_loop(), asyncio.current_task()
    loop.add_signal_handler(signal.SIGINT, ending.signalled)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _ran(world: World, order: Order, one: Named) -> Picked:
    """Follow a run to its end, and do its work here wherever no other process does."""
    (key,) = await connector_mutations.start(owner(world), [one.key], trial=order.trial)
    gate = Gate.of(world.options, private=world.options.connectors_private)
    told: Told | None = None
    here: asyncio.Task[bool] | None = None
    stopped = False
    try:
        while True:
            row = await _run(world, one, key)
            told = told or order.began(one, row)
            told(row)
            if row.finished_at or row.stage == Stage.LISTEN:  # of a server, until the next is due
                if here is not None:
                    await here
                return row
            if order.ending.asked and not stopped:
                await connector_mutations.stop(owner(world), [key])
                stopped = True
            if here is None or here.done():
                if here is not None:
                    here.result()
                here = asyncio.create_task(connector_worker.run_one(world, one.key, gate))
            await asyncio.sleep(EACH)
    finally:
        if here is not None and not here.done():
            here.cancel()
            await asyncio.gather(here, return_exceptions=True)


async def _run(world: World, one: Named, key: int) -> Picked:
    (row,) = await connector_loaders.runs_by_ids(owner(world), [key])
    if row is None:
        raise Trouble(f"{one.name} was removed while it ran")
    return row


def summary(one: Named, row: Picked) -> dict[str, Any]:
    """What came of a run, in plain values."""
    began, ended = row.started_at or row.finished_at, row.finished_at or row.started_at
    seconds = (ended - began).total_seconds()
    return {
        "id": one.id,
        "name": one.name,
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

"""The environment of a process: database, object store, wake-ups, clock and options."""

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import found
from models.events import journal
from models.events.incarnation import Incarnation
from models.events.journal import Entry
from models.events.wakeups import Wakeups
from models.runtime.options import Options
from models.runtime.registration import ObservedClock, Registration
from models.runtime.secret_box import Vault
from models.store.byte_cache import Shelf
from models.store.committed_transactions import is_committed
from models.store.database import Database
from models.store.id_generator import Keys
from models.store.key_collision import TRIES, is_key_collision
from models.store.object_store import Store
from models.store.prepared_statements import Prepared, Rows, Sent, fetched, fetched_all, send

Outcome = TypeVar("Outcome")


def _now() -> datetime:
    return datetime.now(UTC)


def _no_fault(_place: str) -> None:
    """Do nothing at a fault point. Crash tests pass a function that ends the process."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """Options that a transaction has stored, with the position of that change.

    A transaction that changes settings puts this object into the `info` of its session, under
    this class as key. The options apply in this process once the transaction is committed.
    """

    options: Options
    number: int  # of the change in the PLATFORM stream


@dataclass(frozen=True, slots=True)
class World:
    """What a process depends on. Tests pass their own values."""

    database: Database
    blobs: Store
    secret: bytes = field(repr=False)  # signs download links and SRS addresses
    vault: Vault = field(default_factory=Vault.fresh, repr=False)  # encrypts secrets
    options: Options = field(default_factory=Options)
    wakeups: Wakeups = field(default_factory=Wakeups)
    shelf: Shelf = field(default_factory=Shelf, repr=False)
    now: Callable[[], datetime] = _now
    random: Callable[[int], bytes] = secrets.token_bytes
    key: Callable[[], int] = field(default_factory=Keys)
    process: Registration = field(default_factory=Registration, repr=False)
    fault: Callable[[str], None] = _no_fault
    clock: ObservedClock = field(init=False, repr=False)  # the same object as `now`
    base: Options = field(init=False, repr=False)  # the options before any stored setting
    # `CommittedOptions.position` of `options`
    settled: int = field(init=False, default=0, repr=False)
    incarnation: Incarnation = field(init=False, default=Incarnation(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", self.options)
        clock = self.now if isinstance(self.now, ObservedClock) else ObservedClock(self.now)
        object.__setattr__(self, "clock", clock)
        object.__setattr__(self, "now", clock)

    def adopt(self, adopted: "Adopted") -> None:
        """Use other options from now on, unless newer ones are in use.

        `options` stays a plain attribute, since hot paths read it for every message. Code that
        needs several consistent options must read the whole object once.
        """
        if adopted.number >= self.settled:
            object.__setattr__(self, "settled", adopted.number)
            object.__setattr__(self, "options", adopted.options)

    def enter(self, incarnation: Incarnation) -> None:
        """Work in this incarnation of the database. If it is another one, wake all followers."""
        previous = self.incarnation
        object.__setattr__(self, "incarnation", incarnation)
        if previous.base != incarnation.base:
            for stream in self.wakeups.followed:
                self.wakeups.ring(stream, incarnation.base)

    @asynccontextmanager
    async def write(self, *streams: int) -> AsyncGenerator[AsyncSession]:
        """Open a transaction that locks these streams, and commit it at the end of the block.

        Nothing is stored if the block raises. The locks are taken first, in the order of the ids,
        so transactions can't deadlock, and the rows of a user or domain don't change between
        reading and writing. Followers are woken after the commit. Raises StreamBusy if a stream
        stays locked.
        """
        session: AsyncSession | None = None
        try:
            async with self.database.queued(streams), self.database.write() as session:
                await journal.lock(session, streams)
                yield session
        finally:  # a caller that was cancelled during the commit has changed the database
            if session is not None and is_committed(session):
                if committed := session.info.get(Adopted):
                    self.adopt(committed)
                self.wakeups.tell({**journal.reached(session), **_rung(session)})

    async def apply(self, work: Callable[["Turn"], Outcome], *streams: int) -> Outcome:
        """Run `work` in a transaction that locks these streams, and commit it.

        For hot paths: `work` is a synchronous function that uses a plain connection. It runs again
        if a generated id is in use. Followers are woken after the commit.
        """

        def run(connection: Connection) -> tuple[Outcome, Turn]:
            positions = journal.hold(connection, streams) if streams else {}
            transaction = Turn(connection, self, positions)
            return work(transaction), transaction

        async with self.database.queued(streams):
            for tries_left in reversed(range(TRIES)):
                try:
                    outcome, transaction = await self.database.apply(run)
                    break
                except Exception as problem:
                    if not tries_left or not is_key_collision(problem):
                        raise
        self.wakeups.tell({**transaction.reached, **dict.fromkeys(transaction.bells, 0)})
        return outcome

    async def apply_aside(self, work: Callable[["Turn"], Outcome]) -> Outcome:
        """Run `work` in a transaction on the connection that is reserved for heartbeats."""

        def run(connection: Connection) -> tuple[Outcome, Turn]:
            transaction = Turn(connection, self)
            return work(transaction), transaction

        outcome, transaction = await self.database.apply_aside(run)
        self.wakeups.tell({**transaction.reached, **dict.fromkeys(transaction.bells, 0)})
        return outcome

    async def join(self, session: AsyncSession, work: Callable[["Turn"], Outcome]) -> Outcome:
        """Run `work`, a synchronous function, inside the transaction of this session."""

        def run(connection: Connection) -> tuple[Outcome, Turn]:
            transaction = Turn(connection, self)
            return work(transaction), transaction

        outcome, transaction = await (await session.connection()).run_sync(run)
        session.info["reached"] = {**journal.reached(session), **transaction.reached}
        ring(session, *transaction.bells)
        return outcome


def ring(session: AsyncSession, *bells: int) -> None:
    """Wake these workers (`wakeups.TASKS` and so on) when the session has committed."""
    if bells:
        session.info["bells"] = {**_rung(session), **dict.fromkeys(bells, 0)}


def _rung(session: AsyncSession) -> dict[int, int]:
    """Return the ids of the workers that are woken after the commit, each with the value 0."""
    known: dict[int, int] = session.info.get("bells", {})
    return known


@dataclass(slots=True)
class Turn:
    """A transaction on a plain connection, with the positions that it has given.

    `locked_positions` has the last positions of locked streams. `workers_to_wake` has the ids of
    the workers that are woken after the commit.
    """

    connection: Connection
    world: World
    held: dict[int, int] = field(default_factory=dict)
    reached: dict[int, int] = field(default_factory=dict)
    bells: set[int] = field(default_factory=set)

    def count(self, stream_id: int, many: int) -> int:
        """Reserve the next positions of a stream, and return the last one.

        The caller must append entries for all of them. Raises NotFound if there is no such stream.
        """
        last = self.reached[stream_id] = journal.count(self.connection, stream_id, many)
        self.held.pop(stream_id, None)
        return last

    def append(self, stream_id: int, entry: Entry, *, at: datetime) -> None:
        """Write the entry for the positions that were reserved just before."""
        last = self.reached[stream_id]
        journal.append(self.connection, stream_id, entry, last=last, at=at)

    def record(self, stream_id: int, entry: Entry, *, at: datetime) -> int:
        """Reserve positions for an entry and write it; return its last position."""
        last = self.count(stream_id, len(entry.ids))
        self.append(stream_id, entry, at=at)
        return last

    def stands(self, stream_id: int) -> int:
        """Lock a stream until the end of the transaction, and return its last position.

        Raises NotFound if there is no such stream.
        """
        if stream_id not in self.held:
            self.held |= journal.hold(self.connection, [stream_id])
        return found(self.held.get(stream_id), str(stream_id), path=["user"])

    def told(
        self, stream_id: int, entries: Sequence[Entry], *, at: datetime
    ) -> tuple[int, list[Sent]]:
        """Return the last position of these entries, and the statements that record them.

        Locks the stream. The caller must execute the statements.
        """
        position = self.stands(stream_id)
        last = position + sum(len(entry.ids) for entry in entries)
        self.held[stream_id] = self.reached[stream_id] = last
        return last, journal.told(stream_id, entries, since=position, at=at)

    def fetched(self, statement: Prepared, **given: Any) -> Rows:
        """Return the rows of a prepared statement."""
        return fetched(self.connection, statement, given)

    def fetched_all(self, statement: Prepared, given: Sequence[Mapping[str, Any]]) -> Rows:
        """Return the rows of a prepared statement for several sets of parameters, in any order."""
        return fetched_all(self.connection, statement, given)

    def send(self, works: Sequence[Sent]) -> None:
        """Execute prepared statements that change rows and don't depend on each other."""
        send(self.connection, works)

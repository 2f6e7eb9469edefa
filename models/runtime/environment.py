"""The environment of a process: database, object store, wake-ups, clock and options."""

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlmodel.ext.asyncio.session import AsyncSession

from models.cluster.own_node import OwnNode
from models.errors import require_found
from models.events import journal
from models.events.incarnation import Incarnation
from models.events.journal import JournalEntry
from models.events.wakeups import Wakeups
from models.files.damage_marks import register_damage_marks
from models.logs.recorder import LogRecorder
from models.metrics.usage_recorder import UsageRecorder
from models.runtime.components import ComponentRegistry
from models.runtime.options import Options
from models.runtime.registration import ObservedClock, ProcessRegistration
from models.runtime.secret_box import SecretBox
from models.runtime.server_control import ServerControl
from models.sessions.live_sessions import LiveSessionRegistry
from models.store.byte_cache import ByteCache
from models.store.committed_transactions import is_committed
from models.store.database import Database
from models.store.generated_id_collision import MAX_TRIES, is_generated_id_collision
from models.store.id_generator import IdGenerator
from models.store.object_store import ObjectStoreProtocol
from models.store.prepared_statements import (
    LazyRows,
    PreparedStatement,
    StatementWithValues,
    execute_statements,
    fetch_rows,
    fetch_rows_of_each,
)
from models.throttling.refused_networks import RefusedNetworks

Result = TypeVar("Result")


def _current_time() -> datetime:
    return datetime.now(UTC)


def _ignore_fault_point(_name: str) -> None:
    """Do nothing at a fault point. Crash tests pass a function that ends the process."""


@dataclass(frozen=True, slots=True)
class CommittedOptions:
    """Options that a transaction has stored, with the position of that change.

    A transaction that changes settings puts this object into the `info` of its session, under
    this class as key. The options apply in this process once the transaction is committed.
    """

    options: Options
    position: int  # of the change in the PLATFORM stream


@dataclass(frozen=True, slots=True)
class Environment:
    """What a process depends on. Tests pass their own values."""

    database: Database
    object_store: ObjectStoreProtocol
    signing_secret: bytes = field(repr=False)  # signs download links and SRS addresses
    # encrypts secrets
    secret_box: SecretBox = field(default_factory=SecretBox.with_new_key, repr=False)
    options: Options = field(default_factory=Options)
    wakeups: Wakeups = field(default_factory=Wakeups)
    byte_cache: ByteCache = field(default_factory=ByteCache, repr=False)
    refused_networks: RefusedNetworks = field(default_factory=RefusedNetworks, repr=False)
    now: Callable[[], datetime] = _current_time
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    new_id: Callable[[], int] = field(default_factory=IdGenerator)
    process: ProcessRegistration = field(default_factory=ProcessRegistration, repr=False)
    own_node: OwnNode = field(default_factory=OwnNode, repr=False)  # of this process
    live_sessions: LiveSessionRegistry = field(default_factory=LiveSessionRegistry, repr=False)
    components: ComponentRegistry = field(default_factory=ComponentRegistry, repr=False)
    server_control: ServerControl = field(default_factory=ServerControl, repr=False)
    logs: LogRecorder = field(default_factory=LogRecorder, repr=False)  # of this process
    usage: UsageRecorder = field(default_factory=UsageRecorder, repr=False)  # of this process
    reach_fault_point: Callable[[str], None] = _ignore_fault_point
    clock: ObservedClock = field(init=False, repr=False)  # the same object as `now`
    # the options before any stored setting
    initial_options: Options = field(init=False, repr=False)
    # `CommittedOptions.position` of `options`
    options_position: int = field(init=False, default=0, repr=False)
    incarnation: Incarnation = field(init=False, default=Incarnation(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "initial_options", self.options)
        clock = self.now if isinstance(self.now, ObservedClock) else ObservedClock(self.now)
        object.__setattr__(self, "clock", clock)
        object.__setattr__(self, "now", clock)
        register_damage_marks(self.object_store, self.database, clock)

    def use_options_unless_outdated(self, committed: "CommittedOptions") -> None:
        """Use other options from now on, unless newer ones are in use.

        `options` stays a plain attribute, since hot paths read it for every message. Code that
        needs several consistent options must read the whole object once.
        """
        if committed.position >= self.options_position:
            object.__setattr__(self, "options_position", committed.position)
            object.__setattr__(self, "options", committed.options)

    def use_initial_options(self, options: Options) -> None:
        """Use other options from now on where no stored setting precedes them.

        The caller must apply the stored settings again.
        """
        object.__setattr__(self, "initial_options", options)

    def enter_incarnation_and_wake_followers(self, incarnation: Incarnation) -> None:
        """Work in this incarnation of the database. If it is another one, wake all followers."""
        previous = self.incarnation
        object.__setattr__(self, "incarnation", incarnation)
        if previous.base != incarnation.base:
            for stream in self.wakeups.followed_streams:
                self.wakeups.wake_followers(stream, incarnation.base)

    def refuses_ip(self, ip: str | None) -> bool:
        """True if connections from this IP address are refused: a ban, or the deny list."""
        return self.refused_networks.refuses(ip, self.now)

    @asynccontextmanager
    async def write_session(self, *stream_ids: int) -> AsyncGenerator[AsyncSession]:
        """Open a transaction that locks these streams, and commit it at the end of the block.

        Nothing is stored if the block raises. The locks are taken first, in the order of the ids,
        so transactions can't deadlock, and the rows of a user or domain don't change between
        reading and writing. Followers are woken after the commit. Raises StreamBusy if a stream
        stays locked.
        """
        session: AsyncSession | None = None
        try:
            async with (
                self.database.hold_stream_gate_places(stream_ids),
                self.database.write_session() as session,
            ):
                await journal.lock_streams(session, stream_ids)
                yield session
        finally:  # a caller that was cancelled during the commit has changed the database
            if session is not None and is_committed(session):
                if committed := session.info.get(CommittedOptions):
                    self.use_options_unless_outdated(committed)
                self.wakeups.announce(
                    {**journal.recorded_positions(session), **_workers_to_wake(session)}
                )

    async def run_transaction(
        self, work: Callable[["DatabaseTransaction"], Result], *stream_ids: int
    ) -> Result:
        """Run `work` in a transaction that locks these streams, and commit it.

        For hot paths: `work` is a synchronous function that uses a plain connection. It runs again
        if a generated id is in use. Followers are woken after the commit.
        """

        def lock_streams_and_work(connection: Connection) -> tuple[Result, DatabaseTransaction]:
            positions = (
                journal.lock_and_read_positions(connection, stream_ids) if stream_ids else {}
            )
            transaction = DatabaseTransaction(connection, self, positions)
            return work(transaction), transaction

        async with self.database.hold_stream_gate_places(stream_ids):
            for tries_left in reversed(range(MAX_TRIES)):
                try:
                    outcome, transaction = await self.database.run_transaction(
                        lock_streams_and_work
                    )
                    break
                except Exception as problem:
                    if not tries_left or not is_generated_id_collision(problem):
                        raise
        self.wakeups.announce(
            {**transaction.recorded_positions, **dict.fromkeys(transaction.workers_to_wake, 0)}
        )
        return outcome

    async def run_heartbeat_transaction(
        self, work: Callable[["DatabaseTransaction"], Result]
    ) -> Result:
        """Run `work` in a transaction on the connection that is reserved for heartbeats."""

        def work_without_streams(connection: Connection) -> tuple[Result, DatabaseTransaction]:
            transaction = DatabaseTransaction(connection, self)
            return work(transaction), transaction

        outcome, transaction = await self.database.run_heartbeat_transaction(work_without_streams)
        self.wakeups.announce(
            {**transaction.recorded_positions, **dict.fromkeys(transaction.workers_to_wake, 0)}
        )
        return outcome

    async def run_in_session(
        self, session: AsyncSession, work: Callable[["DatabaseTransaction"], Result]
    ) -> Result:
        """Run `work`, a synchronous function, inside the transaction of this session."""

        def work_in_session(connection: Connection) -> tuple[Result, DatabaseTransaction]:
            transaction = DatabaseTransaction(connection, self)
            return work(transaction), transaction

        outcome, transaction = await (await session.connection()).run_sync(work_in_session)
        session.info["reached"] = {
            **journal.recorded_positions(session),
            **transaction.recorded_positions,
        }
        wake_workers_after_commit(session, *transaction.workers_to_wake)
        return outcome


def wake_workers_after_commit(session: AsyncSession, *worker_ids: int) -> None:
    """Wake these workers (`wakeups.TASKS` and so on) when the session has committed."""
    if worker_ids:
        session.info["bells"] = {**_workers_to_wake(session), **dict.fromkeys(worker_ids, 0)}


def _workers_to_wake(session: AsyncSession) -> dict[int, int]:
    """Return the ids of the workers that are woken after the commit, each with the value 0."""
    workers: dict[int, int] = session.info.get("bells", {})
    return workers


@dataclass(slots=True)
class DatabaseTransaction:
    """A transaction on a plain connection, with the positions that it has given.

    `locked_positions` has the last positions of locked streams. `workers_to_wake` has the ids of
    the workers that are woken after the commit.
    """

    connection: Connection
    environment: Environment
    locked_positions: dict[int, int] = field(default_factory=dict)
    recorded_positions: dict[int, int] = field(default_factory=dict)
    workers_to_wake: set[int] = field(default_factory=set)

    def reserve_positions_returning_last(self, stream_id: int, position_count: int) -> int:
        """Reserve the next positions of a stream, and return the last one.

        The caller must append entries for all of them. Raises NotFound if there is no such stream.
        """
        last = self.recorded_positions[stream_id] = (
            journal.reserve_journal_positions_returning_last(
                self.connection, stream_id, position_count
            )
        )
        self.locked_positions.pop(stream_id, None)
        return last

    def insert_entry_at_reserved_positions(
        self, stream_id: int, entry: JournalEntry, *, at: datetime
    ) -> None:
        """Write the entry for the positions that were reserved just before."""
        last = self.recorded_positions[stream_id]
        journal.insert_entry_at_reserved_positions(
            self.connection, stream_id, entry, last_position=last, at=at
        )

    def record_entry(self, stream_id: int, entry: JournalEntry, *, at: datetime) -> int:
        """Reserve positions for an entry and write it; return its last position."""
        last = self.reserve_positions_returning_last(stream_id, len(entry.ids))
        self.insert_entry_at_reserved_positions(stream_id, entry, at=at)
        return last

    def lock_stream_and_read_position(self, stream_id: int) -> int:
        """Lock a stream until the end of the transaction, and return its last position.

        Raises NotFound if there is no such stream.
        """
        if stream_id not in self.locked_positions:
            self.locked_positions |= journal.lock_and_read_positions(self.connection, [stream_id])
        return require_found(self.locked_positions.get(stream_id), str(stream_id), path=["user"])

    def lock_stream_and_plan_entry_statements(
        self, stream_id: int, entries: Sequence[JournalEntry], *, at: datetime
    ) -> tuple[int, list[StatementWithValues]]:
        """Return the last position of these entries, and the statements that record them.

        Locks the stream. The caller must execute the statements.
        """
        position = self.lock_stream_and_read_position(stream_id)
        last = position + sum(len(entry.ids) for entry in entries)
        self.locked_positions[stream_id] = self.recorded_positions[stream_id] = last
        return last, journal.statements_to_record_entries(
            stream_id, entries, current_last_position=position, at=at
        )

    def fetch_rows(self, statement: PreparedStatement, **parameters: Any) -> LazyRows:
        """Return the rows of a prepared statement."""
        return fetch_rows(self.connection, statement, parameters)

    def fetch_rows_of_each(
        self, statement: PreparedStatement, parameter_sets: Sequence[Mapping[str, Any]]
    ) -> LazyRows:
        """Return the rows of a prepared statement for several sets of parameters, in any order."""
        return fetch_rows_of_each(self.connection, statement, parameter_sets)

    def execute_statements(self, statements: Sequence[StatementWithValues]) -> None:
        """Execute prepared statements that change rows and don't depend on each other."""
        execute_statements(self.connection, statements)

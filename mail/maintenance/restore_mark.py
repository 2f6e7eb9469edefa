"""Detection of a restored database, by a mark in the object store.

The mark has the incarnation, a counter (beat) that increases with each mark, and the newest
positions of the streams that grew last. It is written some seconds after a change and at each clean
stop, never during a delivery. The database is written first, so an intact database is never older
than the mark. If it is older, it was restored, and a new incarnation begins.
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any

import orjson
from obstore.exceptions import BaseError
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import col

from models.events import incarnation
from models.events.incarnation import MARK_OBJECT_NAME, SELECT_INCARNATION, Incarnation, from_row
from models.events.journal import Stream
from models.events.wakeups import GrowthEvent, wait_for_any_event_or_timeout
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.outages import StorageUnavailable, storage_failure

log = logging.getLogger(__name__)

CHECK_INTERVAL = 5.0  # seconds between two checks, and between two marks
IDLE_MARK_INTERVAL = 60.0  # seconds between two marks if no stream grows
MAX_STREAMS = 500  # the last changed ones: a restore loses the newest changes
CLUSTER_CHANGED = (
    "The database belongs to another PostgreSQL cluster, and the server was not stopped cleanly."
)
FOREIGN_MARK = "The mark in the object store belongs to another database."
MARK_MISSING = "The mark in the object store is missing."
DATABASE_OLDER = "The database is older than the mark in the object store."
CHANGES_LOST = "The database lacks changes that this server has made or seen."


@dataclass(frozen=True, slots=True)
class PostgresCluster:
    """The system identifier of the PostgreSQL cluster; 0 if unknown or SQLite.

    The timeline is not compared: a failover without loss begins a new one, as a point-in-time
    recovery does. The positions of the streams show the difference.
    """

    system: int = 0


@dataclass(frozen=True, slots=True)
class RestoreMark:
    """The mark in the object store. The field names are its JSON keys."""

    store: str
    number: int
    base: int
    beat: int
    at: str = ""
    clean: bool = False  # written at a clean stop, so no change followed
    cluster: PostgresCluster = PostgresCluster()
    streams: Mapping[int, int] = field(default_factory=dict)  # the newest position of each

    @property
    def incarnation(self) -> Incarnation:
        """The incarnation of the mark."""
        return Incarnation(self.store, self.number, self.base, self.beat)


async def read_mark_or_none(environment: Environment) -> RestoreMark | None:
    """Read the mark. Returns None if it is missing or damaged."""
    try:
        values: dict[str, Any] = orjson.loads(await environment.object_store.get(MARK_OBJECT_NAME))
    except KeyError:
        return None
    except orjson.JSONDecodeError:
        log.warning("Could not read the incarnation mark", extra={"object": MARK_OBJECT_NAME})
        return None
    values["streams"] = {int(key): int(last) for key, last in values["streams"].items()}
    values["cluster"] = PostgresCluster(values["cluster"]["system"])
    return RestoreMark(**values)


async def write_mark(environment: Environment, restore_mark: RestoreMark) -> None:
    """Write the mark to the object store, over the old one.

    Its beat must be in the database already.
    """
    values = {
        **asdict(restore_mark),
        "streams": {str(key): last for key, last in restore_mark.streams.items()},
    }
    await environment.object_store.put(MARK_OBJECT_NAME, orjson.dumps(values))


async def read_cluster(environment: Environment) -> PostgresCluster:
    """Read the system identifier of PostgreSQL. It is unknown without the privilege."""
    if environment.database.dialect == "sqlite":
        return PostgresCluster()
    statement = text("SELECT system_identifier FROM pg_control_system()")
    try:
        async with environment.database.engine.connect() as connection:
            row = (await connection.execute(statement)).one()
    except DBAPIError as problem:
        if getattr(problem.orig, "sqlstate", "") != "42501":  # insufficient_privilege
            raise
        return PostgresCluster()
    return PostgresCluster(int(row.system_identifier))


async def has_lost_changes(environment: Environment, position_by_stream: Mapping[int, int]) -> bool:
    """True if a stream in the database ends before the given position.

    Deleted streams are ignored, since the user may have been deleted.
    """
    if not position_by_stream:
        return False
    statement = select(col(Stream.id), col(Stream.last)).where(
        col(Stream.id).in_(list(position_by_stream))
    )
    return any(
        row.last < position_by_stream[row.id] for row in await environment.database.read(statement)
    )


async def load_and_enter_incarnation(environment: Environment) -> Incarnation:
    """Read the incarnation from the database and use it in this process."""
    current = from_row(next(iter(await environment.database.read(SELECT_INCARNATION)), None))
    environment.enter_incarnation_and_wake_followers(current)
    return current


async def begin_incarnation_unless_begun(
    environment: Environment,
    reason: str,
    seen_incarnation: Incarnation,
    known_incarnation: Incarnation | None = None,
) -> Incarnation:
    """Begin a new incarnation, unless another process did so after `seen_incarnation` was read.

    `known_incarnation` is the newest one that is known outside the database.
    """
    now = environment.now()

    def begin_if_unchanged(transaction: DatabaseTransaction) -> Incarnation:
        current = incarnation.lock_row(transaction.connection)
        if current.base != seen_incarnation.base:
            return current
        newest = known_incarnation or current
        above = Incarnation(
            current.store,
            max(current.number, newest.number),
            max(current.base, newest.base),
            max(current.beat, newest.beat),
        )
        return incarnation.begin_incarnation_invalidating_cursors_and_uids(
            transaction.connection, above, reason=reason, at=now
        )

    new_incarnation = await environment.run_transaction(begin_if_unchanged)
    log_fields = {"reason": reason, "incarnation": new_incarnation.number}
    log.warning("The database was restored; clients read the state again", extra=log_fields)
    environment.enter_incarnation_and_wake_followers(new_incarnation)
    return new_incarnation


class RestoreGuard:
    """Compares the database with the mark, at the start and regularly, and writes marks."""

    def __init__(self, environment: Environment, *, writes_marks: bool = True) -> None:
        self._environment = environment
        self._writes_marks = writes_marks  # one process of a server writes marks; all compare
        self._seen_incarnation = Incarnation()
        self._position_by_stream: dict[
            int, int
        ] = {}  # of the streams that grew last, in this order
        self._reconnected = asyncio.Event()
        self._last_failure_type: type[Exception] | None = None
        self._is_started = not writes_marks  # the mark was compared, so it can be written

    async def try_begin_incarnation_if_restored(self) -> None:
        """Call `begin_incarnation_if_restored_and_write_mark`.

        If a store does not answer, a later check does it.
        """
        try:
            await self.begin_incarnation_if_restored_and_write_mark()
        except (BaseError, OSError, StorageUnavailable) as problem:
            facts = {"problem": type(problem).__name__}
            log.warning("Could not read the incarnation mark; retrying", extra=facts)

    async def begin_incarnation_if_restored_and_write_mark(self) -> None:
        """Compare database and mark, begin a new incarnation if needed, and write a mark."""
        environment = self._environment
        store_id = secrets.token_hex(16)
        await environment.run_transaction(
            lambda transaction: incarnation.insert_first_incarnation_if_missing(
                transaction.connection, store_id
            )
        )
        current = await load_and_enter_incarnation(environment)
        restore_mark = await read_mark_or_none(environment)
        cluster = await read_cluster(environment)
        if restore_mark is None and current.beat == 0:
            await write_mark(
                environment, RestoreMark(current.store, current.number, current.base, 0)
            )
        elif reason := await self._restore_reason(current, restore_mark, cluster):
            current = await begin_incarnation_unless_begun(
                environment, reason, current, restore_mark.incarnation if restore_mark else None
            )
        self._seen_incarnation, self._is_started = current, True
        await self._write_next_mark()

    async def _restore_reason(
        self, current: Incarnation, restore_mark: RestoreMark | None, cluster: PostgresCluster
    ) -> str | None:
        """The reason why the database counts as restored, by the mark in the object store.

        None if the mark is of this database, and all changes that the mark names are there. A
        database in another PostgreSQL cluster counts as restored, too, except after a clean stop.
        After a restore, the caller begins a new incarnation (see `models/events/incarnation.py`).
        """
        if restore_mark is None:
            return MARK_MISSING
        if restore_mark.store != current.store:
            return FOREIGN_MARK
        if restore_mark.base > current.base or restore_mark.beat > current.beat:
            return DATABASE_OLDER
        if restore_mark.base == current.base and await has_lost_changes(
            self._environment, restore_mark.streams
        ):
            return DATABASE_OLDER
        has_both_ids = 0 not in (restore_mark.cluster.system, cluster.system)
        if (
            has_both_ids
            and restore_mark.cluster.system != cluster.system
            and not restore_mark.clean
        ):
            return CLUSTER_CHANGED
        return None

    async def check_and_write_marks_until_cancelled(self) -> None:
        """Check the database every `CHECK_INTERVAL` seconds, and at once after a reconnect."""
        environment = self._environment
        engine = environment.database.engine.sync_engine
        is_postgres = environment.database.dialect != "sqlite"
        self._seen_incarnation = (
            self._seen_incarnation
            if self._seen_incarnation.store
            else await load_and_enter_incarnation(environment)
        )
        if is_postgres:
            event.listen(engine, "connect", self._wake_check_on_connect)
        try:
            with environment.wakeups.follow_all_streams() as wake_ups:
                written_at = monotonic()
                while True:
                    await wait_for_any_event_or_timeout([self._reconnected], CHECK_INTERVAL)
                    self._reconnected.clear()
                    has_grown = self._take_positions_and_return_has_grown(wake_ups)
                    if await self._try_check_and_write_mark(
                        write=has_grown or monotonic() - written_at > IDLE_MARK_INTERVAL
                    ):
                        written_at = monotonic()
        finally:
            if is_postgres:
                event.remove(engine, "connect", self._wake_check_on_connect)

    def _wake_check_on_connect(self, *_: object) -> None:
        """Wake the check, since a new connection may lead to a restored database."""
        self._reconnected.set()

    def _take_positions_and_return_has_grown(self, wake_ups: GrowthEvent) -> bool:
        """Add the positions of grown streams to the known ones. Returns True if a stream has grown.

        The newest MAX_STREAMS are kept.
        """
        positions = {
            key: last for key, last in wake_ups.take_positions().items() if key >= 0 and last > 0
        }
        for key, last in positions.items():
            known_position = self._position_by_stream.pop(key, 0)
            self._position_by_stream[key] = max(known_position, last)
        for key in list(self._position_by_stream)[:-MAX_STREAMS]:
            del self._position_by_stream[key]
        return bool(positions)

    async def _try_check_and_write_mark(self, *, write: bool) -> bool:
        """Check the database, and write a mark if `write` is set. True if one was written."""
        try:
            if not self._is_started:
                await self.begin_incarnation_if_restored_and_write_mark()
            await self.begin_incarnation_if_older_than_seen()
            if write and self._writes_marks:
                await self._write_next_mark()
        except Exception as problem:  # noqa: BLE001 - logged; the next check runs later
            if type(problem) is not self._last_failure_type:
                self._log_failed_check(problem)
            self._last_failure_type = type(problem)
            return False
        self._last_failure_type = None
        return write

    @staticmethod
    def _log_failed_check(problem: Exception) -> None:
        """Log an outage in one line, and any other failure with its traceback."""
        message = "Could not write the incarnation mark"
        log_fields = {"problem": type(problem).__name__}
        if storage_failure(problem) or isinstance(problem, OSError):
            log.warning(message, extra=log_fields)
        else:
            log.error(message, exc_info=problem, extra=log_fields)

    async def begin_incarnation_if_older_than_seen(self) -> None:
        """Begin a new incarnation if the database is older than what this process has seen."""
        environment, seen_incarnation = self._environment, self._seen_incarnation
        current = from_row(next(iter(await environment.database.read(SELECT_INCARNATION)), None))
        if current.store == seen_incarnation.store and current.base > seen_incarnation.base:
            self._use_incarnation(current)  # another process has begun it
            return
        is_older = (
            current.store != seen_incarnation.store
            or current.base < seen_incarnation.base
            or current.beat < seen_incarnation.beat
        )
        if is_older or await has_lost_changes(environment, self._position_by_stream):
            if not current.store:
                store = seen_incarnation.store
                await environment.run_transaction(
                    lambda transaction: incarnation.insert_first_incarnation_if_missing(
                        transaction.connection, store
                    )
                )
            self._use_incarnation(
                await begin_incarnation_unless_begun(
                    environment, CHANGES_LOST, current, seen_incarnation
                )
            )
            if self._writes_marks:
                await self._write_next_mark()
            return
        self._seen_incarnation = current

    def _use_incarnation(self, current: Incarnation) -> None:
        self._position_by_stream.clear()
        self._seen_incarnation = current
        self._environment.enter_incarnation_and_wake_followers(current)

    async def _write_next_mark(self, *, is_clean_stop: bool = False) -> None:
        """Increase the beat in the database, then write the mark with it."""
        environment = self._environment
        current = await environment.run_transaction(
            lambda transaction: incarnation.increase_incarnation_beat(transaction.connection)
        )
        if current.beat <= self._seen_incarnation.beat:
            return  # restored since the last check; the next one detects it
        if current.base != environment.incarnation.base:
            self._use_incarnation(current)  # another process has begun it
        self._seen_incarnation = current
        restore_mark = RestoreMark(
            current.store,
            current.number,
            current.base,
            current.beat,
            environment.now().isoformat(),
            is_clean_stop,
            await read_cluster(environment),
            dict(self._position_by_stream),
        )
        await write_mark(environment, restore_mark)

    async def write_clean_stop_mark(self) -> None:
        """Write the mark of a clean stop, if the mark was compared before."""
        if not self._is_started:
            return
        try:
            await self._write_next_mark(is_clean_stop=True)
        except Exception:  # the database may be the reason for the stop
            log.exception("Could not write the mark of a clean stop")


async def begin_incarnation_after_consistent_restore(
    environment: Environment, reason: str = "merganser check --restored"
) -> Incarnation:
    """Begin a new incarnation after database and objects were restored to the same time."""
    store_id = secrets.token_hex(16)
    await environment.run_transaction(
        lambda transaction: incarnation.insert_first_incarnation_if_missing(
            transaction.connection, store_id
        )
    )
    current = await load_and_enter_incarnation(environment)
    restore_mark = await read_mark_or_none(environment)
    begun = await begin_incarnation_unless_begun(
        environment, reason, current, restore_mark.incarnation if restore_mark else None
    )
    if restore_mark is None:  # without a mark, the guard would begin another incarnation
        await write_mark(
            environment, RestoreMark(begun.store, begun.number, begun.base, begun.beat)
        )
    await RestoreGuard(environment).begin_incarnation_if_restored_and_write_mark()
    return environment.incarnation

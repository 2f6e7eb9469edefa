"""Transactions that share one write to the disk: how an SQLite database is written."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from models.store import cancel_safety
from models.store.committed_transactions import COMMITTED
from models.store.outages import StoreUnavailable, unavailable
from models.store.sqlite.wal_checkpoints import Checkpoints
from models.store.sqlite.write_lock import StoreTurn

MOST = 32  # transactions in a group
LONGEST = 0.005  # time that a group stays open, which delays its callers

Outcome = TypeVar("Outcome")


@dataclass
class Group:
    """Transactions that share one transaction of SQLite, and so one write to the disk."""

    connection: AsyncConnection
    began: float = field(default_factory=time.monotonic)
    units: int = 0
    saved: asyncio.Future[None] = field(default_factory=asyncio.Future)
    # why SQLite rolled the transaction back before its commit
    failure: StoreUnavailable | None = None


class GroupCommit:
    """Lets the transactions of the process use the only writer of an SQLite database in turn.

    Each has its own savepoint. While others wait, the transaction of SQLite stays open for them. No
    caller continues before its changes are on the disk.
    """

    def __init__(self, engine: AsyncEngine, store: StoreTurn, checkpoints: Checkpoints) -> None:
        self._engine = engine.execution_options(merganser_write=True)
        self._checkpoints = checkpoints
        self.store = store
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._group: Group | None = None

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncSession]:
        """Open a session in a savepoint, and wait until its group is committed."""
        await self._take_turn()
        with cancel_safety.unit():  # from here on it ends normally, even if it is cancelled
            try:
                group = self._group = self._group or await self._begun()
                try:
                    async with self._savepoint(group) as session:
                        yield session
                finally:
                    if self._ends(group):
                        await self._save(group)
            finally:
                self._turn.release()
            await cancel_safety.to_the_end(group.saved)
            session.info[COMMITTED] = True

    async def _begun(self) -> Group:
        await self.store.wait()
        try:
            return Group(await self._engine.connect())
        except BaseException:
            self.store.give()
            raise

    @asynccontextmanager
    async def alone(self) -> AsyncGenerator[None]:
        """Hold the lock without an open group, for a writer with its own connection."""
        async with self._turn:
            if self._group:
                await self._save(self._group)
            yield

    async def _take_turn(self) -> None:
        self._waiting += 1
        try:
            await self._turn.acquire()
        except asyncio.CancelledError:
            if self._group and self._waiting == 1 and not self._turn.locked():
                await self._save(self._group)  # it was kept open for this caller alone
            raise
        finally:
            self._waiting -= 1

    @asynccontextmanager
    async def _savepoint(self, group: Group) -> AsyncGenerator[AsyncSession]:
        group.units += 1
        try:
            async with AsyncSession(
                group.connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
            ) as session:
                try:
                    yield session
                    await (
                        session.commit()
                    )  # releases the savepoint: another one's failure does not matter
                except Exception as problem:
                    await _note_lost_transaction(group, problem)
                    raise
        except Exception:
            if group.failure is not None:  # there is no savepoint to roll back to
                raise group.failure from group.failure.__cause__
            raise

    def _ends(self, group: Group) -> bool:
        old = time.monotonic() - group.began > LONGEST
        return group.failure is not None or not self._waiting or group.units >= MOST or old

    async def _save(self, group: Group) -> None:
        self._group = None
        try:
            if group.failure is not None:
                raise group.failure
            await group.connection.commit()
        except Exception as problem:  # noqa: BLE001 - each transaction of the group raises it
            group.saved.set_exception(problem)
            group.saved.exception()  # marks it as retrieved, if no caller waits
        else:
            group.saved.set_result(None)
            self._checkpoints.committed()
        finally:
            try:
                await group.connection.close()
            finally:
                self.store.give()


async def _note_lost_transaction(group: Group, problem: Exception) -> None:
    """Note why SQLite rolled the transaction of a group back, if it did.

    It does so when the disk is full, or fails: https://www.sqlite.org/lang_transaction.html After a
    failed flush SQLAlchemy has ended it, for any reason: nothing is noted then, unless the failure
    is one of the database.
    """
    driver: Any = (await group.connection.get_raw_connection()).driver_connection
    if driver.in_transaction:
        return
    failure = unavailable(problem)
    if failure is None:
        if not group.connection.in_transaction():
            return
        failure = StoreUnavailable()
    group.failure = failure
    if failure is not problem:
        failure.__cause__ = problem


@dataclass(frozen=True, slots=True)
class Job:
    """A synchronous transaction that waits for the writer's thread."""

    work: Callable[[Connection], Any]
    outcome: asyncio.Future[Any]


class Batches:
    """Runs functions of a connection in the writer's thread, several in one transaction."""

    def __init__(self, engine: Engine, turns: GroupCommit, checkpoints: Checkpoints) -> None:
        self.engine = engine
        self._checkpoints = checkpoints
        self._turns = turns
        self._thread = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[Job] = deque()
        self._running: asyncio.Task[None] | None = None
        # To take it from the pool and return it would cost as much as a small transaction.
        self._connection: Connection | None = None

    async def apply(self, work: Callable[[Connection], Outcome]) -> Outcome:
        """Run a function in a transaction, and return its result after the commit."""
        job = Job(work, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        outcome: Outcome = await job.outcome
        return outcome

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            async with self._turns.alone():
                jobs = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                try:
                    done = await loop.run_in_executor(self._thread, self._commit, jobs)
                except Exception as broken:  # noqa: BLE001 - each transaction of the group raises it
                    done = [(None, broken)] * len(jobs)
            self._waiting.extendleft(
                reversed(jobs[len(done) :])
            )  # those for which there was no time
            for job, (value, problem) in zip(jobs, done, strict=False):
                if job.outcome.done():
                    continue  # the caller was cancelled; the work is done nevertheless
                if problem:
                    job.outcome.set_exception(problem)
                else:
                    job.outcome.set_result(value)

    def _commit(self, jobs: list[Job]) -> list[tuple[Any, Exception | None]]:
        self._turns.store.take()
        try:
            return self._committed(jobs)
        finally:
            self._turns.store.give()

    def _committed(self, jobs: list[Job]) -> list[tuple[Any, Exception | None]]:
        if self._connection is None:
            self._connection = self.engine.connect()
        connection, done = self._connection, list[tuple[Any, Exception | None]]()
        driver: Any = connection.connection.driver_connection
        driver.execute("BEGIN IMMEDIATE")
        try:
            if len(jobs) == 1:  # no savepoint is needed
                done.append((jobs[0].work(connection), None))
            else:
                began = time.monotonic()
                for job in jobs:
                    done.append(_apart(connection, job))
                    if time.monotonic() - began > LONGEST:
                        break
            driver.execute("COMMIT")
        except BaseException:
            if driver.in_transaction:  # SQLite has rolled it back if the disk is full
                driver.execute("ROLLBACK")
            raise
        self._checkpoints.committed()
        return done

    async def close(self) -> None:
        if self._running:
            await self._running
        self._thread.shutdown()
        if self._connection is not None:
            self._connection.close()
        self._checkpoints.close()
        self.engine.dispose()
        self._turns.store.close()


def _apart(connection: Connection, job: Job) -> tuple[Any, Exception | None]:
    """Run one of several jobs; roll it back if it fails. Return its result or its error."""
    driver: Any = connection.connection.driver_connection  # SQLAlchemy takes as long as the job
    driver.execute("SAVEPOINT unit")
    try:
        outcome = job.work(connection)
    except Exception as broken:
        if not driver.in_transaction:  # SQLite has rolled back, with the jobs before
            raise
        driver.execute("ROLLBACK TO unit")
        driver.execute("RELEASE unit")
        return None, broken
    driver.execute("RELEASE unit")
    return outcome, None

"""Units of work that share one wait for the disk: how an SQLite store is written."""

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

MOST = 32  # units in a group
LONGEST = 0.005  # seconds a group stays open: a person waits behind it

Outcome = TypeVar("Outcome")


@dataclass
class Group:
    """Units of work that share one transaction, and so one wait for the disk."""

    connection: AsyncConnection
    began: float = field(default_factory=time.monotonic)
    units: int = 0
    saved: asyncio.Future[None] = field(default_factory=asyncio.Future)
    failure: StoreUnavailable | None = None  # why SQLite ended the transaction before its commit


class GroupCommit:
    """The turns of the one writer of an SQLite store.

    Units take turns, each in a savepoint of its own. While others wait the transaction
    stays open for them; nobody is told "done" before it is on the disk.
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
        await self._take_turn()
        with cancel_safety.unit():  # from here on it ends either way, called off or not
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
        """A turn in which no transaction of ours is open: for a writer with its own connection."""
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
                await self._save(self._group)  # it was kept open for us alone
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
                    await session.commit()  # of the savepoint: a neighbour's failure is not ours
                except Exception as problem:
                    await _note_lost_transaction(group, problem)
                    raise
        except Exception:
            if group.failure is not None:  # there is no savepoint to go back to
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
        except Exception as problem:  # noqa: BLE001 - each unit of the group raises it
            group.saved.set_exception(problem)
            group.saved.exception()  # it may be that no unit waits: each has failed before
        else:
            group.saved.set_result(None)
            self._checkpoints.committed()
        finally:
            try:
                await group.connection.close()
            finally:
                self.store.give()


async def _note_lost_transaction(group: Group, problem: Exception) -> None:
    """Note why SQLite ended the transaction of a group, if it did.

    It does so when the disk is full, or fails: https://www.sqlite.org/lang_transaction.html
    After a failed flush SQLAlchemy has ended it, for whatever reason: nothing is noted then,
    unless the failure is one of the store.
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
    """A unit that waits for its turn."""

    work: Callable[[Connection], Any]
    outcome: asyncio.Future[Any]


class Batches:
    """Units that are plain functions of a connection: run in the writer's thread, in groups."""

    def __init__(self, engine: Engine, turns: GroupCommit, checkpoints: Checkpoints) -> None:
        self.engine = engine
        self._checkpoints = checkpoints
        self._turns = turns
        self._thread = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[Job] = deque()
        self._running: asyncio.Task[None] | None = None
        # Taking it from the pool and giving it back would cost as much as a small unit.
        self._connection: Connection | None = None

    async def apply(self, work: Callable[[Connection], Outcome]) -> Outcome:
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
                except Exception as broken:  # noqa: BLE001 - each unit of the group raises it
                    done = [(None, broken)] * len(jobs)
            self._waiting.extendleft(reversed(jobs[len(done) :]))  # what took too long to start
            for job, (value, problem) in zip(jobs, done, strict=False):
                if job.outcome.done():
                    continue  # who asked has gone; the work is done all the same
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
            if len(jobs) == 1:  # it has no neighbours to shield
                done.append((jobs[0].work(connection), None))
            else:
                began = time.monotonic()
                for job in jobs:
                    done.append(_apart(connection, job))
                    if time.monotonic() - began > LONGEST:
                        break
            driver.execute("COMMIT")
        except BaseException:
            if driver.in_transaction:  # SQLite ends it by itself where the disk is full
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
    """Do one of several units, or nothing of it."""
    driver: Any = connection.connection.driver_connection  # SQLAlchemy takes as long as a unit
    driver.execute("SAVEPOINT unit")
    try:
        outcome = job.work(connection)
    except Exception as broken:
        if not driver.in_transaction:  # SQLite has ended it, with what the others have done
            raise
        driver.execute("ROLLBACK TO unit")
        driver.execute("RELEASE unit")
        return None, broken
    driver.execute("RELEASE unit")
    return outcome, None

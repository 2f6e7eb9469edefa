"""The transaction of a request, which nested transactions and loads share."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select
from sqlmodel.ext.asyncio.session import AsyncSession

from models.store.columns import ColumnRow
from models.store.committed_transactions import is_committed
from models.store.database import Database


class DryRunRollback(Exception):
    """Rolls a dry run back."""


@dataclass
class RequestTransaction:
    """The transaction of a request, which nested transactions join.

    The first write opens it: before, no lock is held.
    """

    database: Database
    exit_stack: AsyncExitStack
    commits: bool
    session: AsyncSession | None = None  # None before the first write, and after the end
    last_session: AsyncSession | None = None  # the same session, also after the end
    after_commit: list[Callable[[], object]] = field(default_factory=list)
    after_dry_run: list[Callable[[], object]] = field(default_factory=list)
    session_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    lock_owner: asyncio.Task[Any] | None = None  # the task that holds `session_lock`
    running_loads: set[asyncio.Future[None]] = field(default_factory=set)
    # of loads that were requested, and have not begun, by their dataloader
    expected_loads: dict[Hashable, asyncio.Future[None]] = field(default_factory=dict)
    has_ended: bool = False  # True from the moment when the commit or rollback begins

    @property
    def is_open(self) -> bool:
        """True from the first write to the end of the transaction."""
        return self.session is not None

    @property
    def is_committed(self) -> bool:
        """True if the writes of the transaction are durable."""
        return is_committed(self.last_session)

    async def read(
        self, statement: Select[*tuple[Any, ...]], parameters: Mapping[str, Any] | None = None
    ) -> Sequence[ColumnRow] | None:
        """Return the rows as this transaction sees them; None if it is not open."""
        if self.session is None:
            return None
        async with self.lock_session():
            if self.session is None:  # the transaction has ended in the meantime
                return None
            await self.session.flush()
            connection = await self.session.connection()
            return (await connection.execute(statement, parameters)).all()

    @asynccontextmanager
    async def lock_session(self) -> AsyncGenerator[None]:
        """Lock the session, which concurrent loads share. Its owner can lock it again."""
        task = asyncio.current_task()
        if self.lock_owner is task:
            yield
            return
        async with self.session_lock:
            self.lock_owner = task
            try:
                yield
            finally:
                self.lock_owner = None

    def expect_load(self, loader: Hashable) -> None:
        """Make the end of the transaction wait until the next batch of this loader has ended.

        A batch begins a few steps of the event loop after its first key is requested.
        """
        if loader not in self.expected_loads and not self.has_ended:
            self.expected_loads[loader] = asyncio.get_running_loop().create_future()

    @contextmanager
    def track_load(self, loader: Hashable) -> Generator[None]:
        """Make the end of the transaction wait for this load, which begins.

        A load runs on if the fields that wait for it are cancelled, and can use the session.
        """
        running: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.running_loads.add(running)
        if (expected := self.expected_loads.pop(loader, None)) is not None:
            expected.set_result(None)
        try:
            yield
        finally:
            self.running_loads.discard(running)
            running.set_result(None)

    async def wait_for_loads_and_detach_session(self) -> None:
        """Wait for requested and running loads; later ones use the committed rows."""
        try:
            while loads := {*self.running_loads, *self.expected_loads.values()}:
                await asyncio.wait(loads)
            async with self.lock_session():
                self.session = None
        finally:
            self.session, self.has_ended = None, True


@asynccontextmanager
async def savepoint(session: AsyncSession) -> AsyncGenerator[None]:
    """Open a savepoint that also restores `session.info` if it is rolled back."""
    info_before = dict(session.info)
    try:
        async with session.begin_nested():
            yield
    except BaseException:
        session.info.clear()  # it describes writes that were rolled back
        session.info.update(info_before)
        raise

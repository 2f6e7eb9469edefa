"""Context of an operation: the viewer, the environment, dataloaders and transactions."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, Self, TypeVar

from aiodataloader import DataLoader, Loader, dispatch_queue
from sqlalchemy import Select
from sqlmodel.ext.asyncio.session import AsyncSession

from models.events import journal
from models.events.event_types import EventType
from models.events.journal import JournalEntry, StreamPositions
from models.observability import metrics
from models.observability.traces import TimedBlock
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.cancel_safety import await_to_end
from models.store.columns import ColumnRow
from models.store.database import current_transaction
from models.store.dependent_selects import SelectStep, SelectSteps, run_steps_async
from models.store.prepared_statements import PreparedStatement
from models.warning_codes import WarningCode
from resolvers.operation_reads import end_load_with_operation
from resolvers.request_transaction import DryRunRollback, RequestTransaction, savepoint
from resolvers.viewer import Viewer

Key = TypeVar("Key")
Value = TypeVar("Value")
Outcome = TypeVar("Outcome")
JournalPosition = int  # of an entry in its stream
MAX_BATCH_KEYS = 250  # keys; SQLite allows 500 parts in a UNION
BATCH_KEYS_METRIC = metrics.histogram(
    "merganser_loader_batch_keys",
    "Keys in a dataloader batch.",
    "batch",
    bounds=metrics.COUNT_BOUNDS,
)
BATCH_SECONDS_METRIC = metrics.histogram(
    "merganser_loader_batch_seconds", "Duration of a dataloader batch.", "batch"
)


class BatchFunction(Protocol[Key, Value]):
    """A dataloader function: it loads one value for each key, in the order of the keys."""

    async def __call__(self, ctx: "Context", keys: list[Key], /) -> list[Value]: ...  # noqa: D102


@dataclass
class SubscriptionStart:
    """Start of a subscription, for a transport that handles positions outside of the document.

    `last_seen`, the last position of the client, precedes the position in the document. `on_start`
    is called with the first position if neither gives one.
    """

    on_start: Callable[[StreamPositions], None]
    last_seen: StreamPositions | None = None


def ignore_byte_charge(_byte_count: int) -> None:
    """Accept any number of bytes read: for background jobs and outside of an execution."""


@dataclass(frozen=True, slots=True)
class MutationWarning:
    """A warning in the payload of a mutation that succeeded."""

    code: WarningCode
    message: str
    path: list[str]  # inside the input


@dataclass
class Context:
    """The context of one operation: a GraphQL request, an event of a subscription, or a job."""

    environment: Environment
    viewer: Viewer
    connection_params: dict[str, Any] | None = None  # of a socket's `connection_init`
    client_ip: str | None = None
    request_id: str = ""  # of the HTTP request or WebSocket; empty: it is a job
    has_named_client: bool = False  # a front end has named the client, with `client_ip`
    session_id: str | None = None  # the client's name of its session
    origin: str | None = None  # of its changes: a client recognizes its own events by it
    reason: str | None = None  # given by the client, for the journal
    # cache for the lifetime of the selection set that is being executed
    selection_cache: dict[Any, Any] = field(default_factory=dict, repr=False)
    subscription_start: SubscriptionStart | None = field(default=None, repr=False)
    # values of arguments, which a subscription that starts again must not resolve again
    resolved_arguments: dict[str, Any] | None = field(default=None, repr=False)
    # drops subscribers whose credential has ended, before the next event
    drop_ended_subscribers: Callable[[], Awaitable[None]] | None = field(default=None, repr=False)
    # charges bytes read from stored messages to the viewer; raises if they exceed a limit
    charge_bytes: Callable[[int], None] = field(default=ignore_byte_charge, repr=False)
    # journal position a query reads at
    query_position: StreamPositions | None = field(default=None, repr=False)
    # of the last transaction
    committed_position: StreamPositions | None = field(default=None, init=False)
    # of the current mutation
    warnings: list[MutationWarning] = field(default_factory=list, init=False)
    # functions that return the search terms of a list, by its response path
    search_terms_by_path: dict[Hashable, Callable[[], Sequence[Any]]] = field(
        default_factory=dict, init=False, repr=False
    )
    _transaction: RequestTransaction | None = field(default=None, init=False, repr=False)
    _loaders: dict[Any, DataLoader[Any, Any]] = field(default_factory=dict, init=False, repr=False)

    def load(self, batch: BatchFunction[Key, Value], key: Key) -> Awaitable[Value]:
        """Load the value of `key`, batched with all keys requested in this tick.

        If one of the waiting tasks is cancelled, the others still get the value. If the operation
        is cancelled, so is the load.
        """
        return asyncio.shield(self._loader(batch).load(key))

    def load_many(
        self, batch: BatchFunction[Key, Value], keys: Iterable[Key]
    ) -> Awaitable[list[Value]]:
        """Load the values of these keys, in their order."""
        return asyncio.shield(self._loader(batch).load_many(list(keys)))

    def _loader(self, batch: BatchFunction[Key, Value]) -> DataLoader[Key, Value]:
        if batch not in self._loaders:
            self._loaders[batch] = ContextLoader(self, batch)
        return self._loaders[batch]

    @property
    def last_seen_position(self) -> StreamPositions | None:
        """The position in the header Last-Event-ID of a subscription; None without it."""
        return self.subscription_start.last_seen if self.subscription_start else None

    async def resolve_once(self, name: str, resolve: Callable[[], Awaitable[Value]]) -> Value:
        """Return the value of an argument. A subscription that starts again keeps the first one.

        So it follows the same object after a rename, and after the object was deleted.
        """
        if self.resolved_arguments is None:
            return await resolve()
        if name not in self.resolved_arguments:
            self.resolved_arguments[name] = await resolve()
        value: Value = self.resolved_arguments[name]
        return value

    def clear_loaded(self) -> None:
        """Drop the loaded values.

        Call it after a change of rows outside `write_session`.
        """
        self._loaders.clear()

    def fresh_copy(self) -> Self:
        """Return a copy for the same viewer, without loaded values and open transaction."""
        return replace(self, selection_cache={})

    def copy_for_viewer(self, viewer: Viewer) -> Self:
        """Return a copy for another viewer, inside the open transaction, if there is one."""
        context_copy = replace(self, viewer=viewer, selection_cache={})
        context_copy._transaction = self._transaction  # noqa: SLF001 - the same class
        context_copy.warnings = self.warnings
        return context_copy

    async def read(
        self, statement: Select[*tuple[Any, ...]], parameters: Mapping[str, Any] | None = None
    ) -> Sequence[ColumnRow]:
        """Return the rows of one select, as the open transaction of this request sees them."""
        if (
            self._transaction is not None
            and (rows := await self._transaction.read(statement, parameters)) is not None
        ):
            return rows
        return await self.environment.database.read(statement, parameters)

    async def read_prepared(
        self, statement: PreparedStatement, *, reads_many_rows: bool = False, **parameters: Any
    ) -> Sequence[Any]:
        """Return the rows of a prepared select; `viewer` is among its parameters.

        Set `reads_many_rows` if the select can read more than some hundred rows.
        """
        parameters["viewer"] = self.viewer.user_id
        if self._transaction is None or not self._transaction.is_open:
            return await self.environment.database.read_prepared(
                statement, parameters, reads_many_rows=reads_many_rows
            )
        return await self.read(statement.statement, parameters)

    async def run_select_steps(self, steps: SelectSteps[Outcome]) -> Outcome:
        """Run a chain of dependent selects that may read many rows, and return its result."""
        if self._transaction is None or not self._transaction.is_open:
            return await self.environment.database.run_select_steps(steps)
        return await run_steps_async(steps, self._run_select_step)

    async def _run_select_step(self, step: SelectStep) -> Sequence[Any]:
        statement, parameters = step
        unprepared = statement.statement if isinstance(statement, PreparedStatement) else statement
        return await self.read(unprepared, parameters)

    @asynccontextmanager
    async def write_session(self, *stream_ids: int) -> AsyncGenerator[AsyncSession]:
        """Open a transaction that locks these streams; inside an open one, a savepoint.

        Name the streams of the users and domains that change: not always the viewer's. Loaded
        values are dropped.
        """
        stream_ids = tuple(sorted(set(stream_ids)))
        is_outermost = self._transaction is None
        async with self.combined_transaction() as open_transaction:
            if open_transaction.session is None:
                open_transaction.session = await open_transaction.exit_stack.enter_async_context(
                    self.environment.write_session(*stream_ids)
                )
                open_transaction.last_session = open_transaction.session
            else:
                await journal.lock_streams(open_transaction.session, stream_ids)
            async with nullcontext() if is_outermost else savepoint(open_transaction.session):
                yield open_transaction.session
            self.committed_position = journal.recorded_positions(open_transaction.session)
            self.clear_loaded()

    async def run_transaction(
        self, function: Callable[[DatabaseTransaction], Outcome], *stream_ids: int
    ) -> Outcome:
        """Run a function in a transaction that locks these streams.

        Inside an open one, in a savepoint. The function runs in the thread of the database and gets
        the transaction.
        """
        if self._transaction is not None:
            async with self.write_session(*stream_ids) as session:
                return await self.environment.run_in_session(session, function)

        def run_and_get_position(
            transaction: DatabaseTransaction,
        ) -> tuple[Outcome, StreamPositions | None]:
            return function(transaction), dict(transaction.recorded_positions)

        applying = asyncio.ensure_future(
            self.environment.run_transaction(run_and_get_position, *stream_ids)
        )
        # a commit must not be left unknown
        outcome, self.committed_position = await await_to_end(applying)
        self.clear_loaded()
        return outcome

    @asynccontextmanager
    async def separate_or_nested_write_session(
        self, *stream_ids: int
    ) -> AsyncGenerator[tuple[Self, AsyncSession]]:
        """Open a separate transaction, which drops no loaded values of this context.

        Inside an open transaction it is a savepoint, since a database may allow one writer only.
        Then the caller must not wait for other loads, since they can't read until it ends.
        """
        transaction = self._transaction
        if transaction is not None and not transaction.has_ended:
            async with transaction.lock_session(), self.write_session(*stream_ids) as session:
                yield self, session
        else:
            separate_ctx = self.fresh_copy()
            async with separate_ctx.write_session(*stream_ids) as session:
                yield separate_ctx, session

    async def record_change(
        self,
        session: AsyncSession,
        stream_id: int,
        event_type: EventType,
        ids: Sequence[int],
        **facts: Any,
    ) -> JournalPosition:
        """Write a change of these objects to the journal of a stream; return the last position.

        Too many ids for one row become several entries; a list in `facts` is split in the same way.
        """
        last_position = 0
        for entry in self.journal_entries(event_type, ids, **facts):
            last_position = await journal.append_journal_entry(
                session, stream_id, entry, at=self.environment.now()
            )
        return last_position

    def journal_entries(
        self, event_type: EventType, ids: Sequence[int], **facts: Any
    ) -> list[JournalEntry]:
        """Return the journal entries of a change of these objects, with reason and origin."""
        if self.reason:
            facts["reason"] = self.reason
        result = []
        for start in range(0, len(ids), journal.MAX_IDS_PER_ROW):
            part = slice(start, start + journal.MAX_IDS_PER_ROW)
            part_facts = {k: v[part] if isinstance(v, list) else v for k, v in facts.items()}
            result.append(JournalEntry(event_type, ids[part], part_facts, self.origin))
        return result

    async def record_changes(
        self,
        session: AsyncSession,
        changes_by_stream: Mapping[int, Sequence[tuple[EventType, Sequence[int]]]],
        **facts: Any,
    ) -> None:
        """Write changes to the journals of many locked streams, with as few statements as for one.

        The facts are the same for all changes.
        """
        entries = {
            stream: [
                entry
                for event_type, ids in changes
                for entry in self.journal_entries(event_type, ids, **facts)
            ]
            for stream, changes in changes_by_stream.items()
        }
        await journal.record_entries_in_streams_or_raise(
            session, entries, at=self.environment.now()
        )

    def add_warning(self, code: WarningCode, message: str, *, path: Sequence[str]) -> None:
        """Add a warning to the payload of the current mutation."""
        self.warnings.append(MutationWarning(code, message, list(path)))

    @property
    def is_writing(self) -> bool:
        """True if a transaction has begun to write: then the code must not wait for slow work."""
        return self._transaction is not None and self._transaction.session is not None

    @property
    def is_in_transaction(self) -> bool:
        """True if the next transaction would be part of an open one."""
        return self._transaction is not None

    @property
    def is_dry_run(self) -> bool:
        """True if the open transaction is a dry run, which is rolled back."""
        return self._transaction is not None and not self._transaction.commits

    def call_after_commit_or_now(self, callback: Callable[[], object]) -> None:
        """Call this after the commit: never for a dry run or after a rollback."""
        if self._transaction is None:
            callback()
        else:
            self._transaction.after_commit.append(callback)

    def call_after_dry_run(self, callback: Callable[[], object]) -> None:
        """Call this after the rollback of the open dry run."""
        if self._transaction is not None:
            self._transaction.after_dry_run.append(callback)

    @asynccontextmanager
    async def combined_transaction(
        self, *, commit: bool = True
    ) -> AsyncGenerator[RequestTransaction]:
        """Combine all transactions opened inside, as for `@atomic` or an idempotency key.

        Without `commit` it is a dry run, and so is the transaction around it: all is rolled back.
        """
        if self._transaction is not None:
            self._transaction.commits &= commit
            yield self._transaction
            return
        previous = current_transaction.get()
        exit_stack = AsyncExitStack()
        self._transaction = request_transaction = RequestTransaction(
            self.environment.database, exit_stack, commit
        )
        try:
            async with exit_stack:
                current_transaction.set(request_transaction)
                try:
                    yield request_transaction
                finally:
                    await request_transaction.wait_for_loads_and_detach_session()
                if not request_transaction.commits:
                    self.committed_position = None
                    raise DryRunRollback
            current_transaction.set(previous)
            for callback in request_transaction.after_commit:
                callback()
        except DryRunRollback:
            current_transaction.set(previous)
            for callback in request_transaction.after_dry_run:
                callback()
        except asyncio.CancelledError:
            if request_transaction.is_committed:  # the cancellation came during the commit
                for callback in request_transaction.after_commit:
                    callback()
            raise
        finally:
            current_transaction.set(previous)
            self._transaction = None
            self.clear_loaded()


class ContextLoader(DataLoader[Any, Any]):
    """The dataloader of a batch function in a context.

    A key that is requested in a transaction belongs to it, also if its batch begins later: the end
    of the transaction waits for it.
    """

    def __init__(self, ctx: Context, batch: BatchFunction[Any, Any]) -> None:
        super().__init__(max_batch_size=MAX_BATCH_KEYS)
        self._ctx = ctx
        self._batch = batch
        self._name = _batch_name(batch)

    def do_resolve_reject(self, key: Any, future: asyncio.Future[Any]) -> None:
        """Add a key to the next batch.

        The loop begins the batch in its second turn, as in aiodataloader, but without a task.
        """
        self._queue.append(Loader(key=key, future=future))
        if len(self._queue) == 1:
            self.loop.call_soon(self._begin_batch_in_next_turn)
        if (transaction := self._ctx._transaction) is not None:  # noqa: SLF001 - the same module
            transaction.expect_load(self)

    def _begin_batch_in_next_turn(self) -> None:
        self.loop.call_soon(dispatch_queue, self)

    async def batch_load_fn(self, keys: list[Any]) -> list[Any]:
        """Run the batch function and measure the number of keys and the time."""
        BATCH_KEYS_METRIC.observe(len(keys), self._name)
        with TimedBlock(BATCH_SECONDS_METRIC, f"load {self._name}", self._name) as timing:
            if timing.span is not None:
                timing.span.attributes["merganser.keys"] = len(keys)
            transaction = self._ctx._transaction  # noqa: SLF001 - the same module
            with (
                nullcontext() if transaction is None else transaction.track_load(self),
                end_load_with_operation(),
            ):
                return await self._batch(self._ctx, keys)


def _batch_name(batch: object) -> str:
    """Return the module below `resolvers` and the function: `users.loaders.by_ids`.

    A partial has the name of the function that it calls.
    """
    while isinstance(batch, partial):
        batch = batch.func
    module = getattr(batch, "__module__", "").removeprefix("resolvers.")
    return f"{module}.{getattr(batch, '__qualname__', type(batch).__qualname__)}"

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
from datetime import datetime
from functools import partial
from typing import Any, Protocol, Self, TypeVar

from aiodataloader import DataLoader
from sqlalchemy import Select
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Forbidden, Unauthenticated
from models.events import journal
from models.events.journal import ChangeKind, Entry, Position
from models.observability import metrics
from models.observability.traces import Timed
from models.runtime.environment import Turn, World
from models.store.cancel_safety import to_the_end
from models.store.columns import Picked
from models.store.committed_transactions import is_committed
from models.store.database import Database, current_transaction
from models.store.dependent_selects import Step, Steps, told_later
from models.store.prepared_statements import Prepared
from models.users.roles import AdminPermission, Role, Scope, UserPermission, opened

Key = TypeVar("Key")
Value = TypeVar("Value")
Outcome = TypeVar("Outcome")

BATCH = 250  # keys; SQLite allows 500 parts in a UNION

BATCHES = metrics.histogram(
    "merganser_loader_batch_keys", "Keys in a batch of a loader.", "batch", bounds=metrics.MANY
)
LOADING = metrics.histogram("merganser_loader_batch_seconds", "Time of a batch.", "batch")


class Batch(Protocol[Key, Value]):
    """A dataloader function: it loads one value for each key, in the order of the keys."""

    async def __call__(self, ctx: "Context", keys: list[Key], /) -> list[Value]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Needs:
    """The authorization rule of a field: role, scope and permission that the viewer needs."""

    role: Role = Role.USER
    scope: Scope | None = None
    admin_permission: AdminPermission | None = None  # of a DOMAIN_ADMIN
    user_permission: UserPermission | None = None  # of a USER
    # the rule for viewers whose sign-in waits for no second factor
    signed_in: "Needs | None" = None


@dataclass(slots=True, weakref_slot=True)
class Reach:
    """Whether mailboxes are shared with a user; one object for all its viewers in a process.

    True is always right and only costs a wider search. False can be late for as long as a
    credential is cached.
    """

    shared: bool = False


@dataclass(frozen=True, slots=True)
class Viewer:
    """The signed-in user or key of a request, with the rights of its credential.

    `user_id` is 0 if the credential belongs to no user: there is none, or it is a key of the
    platform. `administered_domains` are the domain ids of a DOMAIN_ADMIN with AdminPermissions in
    `permissions`; a USER has UserPermissions in it.
    """

    user_id: int = 0
    role: Role = Role.PUBLIC
    scopes: frozenset[Scope] = frozenset()
    permissions: frozenset[AdminPermission | UserPermission] = frozenset()
    administers: frozenset[int] = frozenset()
    read_only: bool = False
    token_id: int | None = None
    api_key_id: int | None = None
    app_password_id: int | None = None
    operations: frozenset[str] = frozenset()  # root fields it can use; empty = all
    pending_for: int = 0  # user whose second factor is missing: the role is PUBLIC until then
    actor_id: int = 0  # the administrator who acts as the user
    actor_key_id: int | None = None  # or the key without an account; 0: the bootstrap key
    new_password_only: bool = False  # signed in with a temporary password
    ends_at: datetime | None = None  # of the credential
    auth_version: int = field(default=0, compare=False)  # of the user, when it was read
    reach: Reach = field(default_factory=Reach, compare=False)

    @property
    def principal(self) -> str:
        """The owner of idempotency keys: the user, the API key, or the bootstrap key."""
        if self.user_id:
            return f"user:{self.user_id}"
        return f"key:{self.api_key_id or 0}" if self.role is not Role.PUBLIC else "public"

    @property
    def acting(self) -> bool:
        """True if an administrator, or a key of the platform, acts as the user."""
        return bool(self.actor_id) or self.actor_key_id is not None

    @property
    def speaks_for_others(self) -> bool:
        """True if the viewer is a front end that is trusted to name its users.

        That is a key of an ADMIN.
        """
        return self.token_id is None and self.role.includes(Role.ADMIN)

    @property
    def credential(self) -> str:
        """A short text that identifies the credential.

        Signed URLs are bound to it and end with it.
        """
        if self.token_id:
            return f"t{self.token_id}"
        if self.api_key_id:
            return f"k{self.api_key_id}"
        if self.app_password_id:
            return f"a{self.app_password_id}"
        return f"v{self.auth_version}" if self.user_id else "b"

    def require_scope(self, scope: Scope) -> None:
        """Raise Forbidden if the credential lacks this scope."""
        self.require(Needs(scope=scope))

    def require(self, needs: Needs) -> None:
        """Raise Forbidden if the viewer lacks the role, scope or permission.

        Raises Unauthenticated if the viewer is not signed in.
        """
        if needs.signed_in and not self.pending_for:
            needs = needs.signed_in
        if self.role is Role.PUBLIC and needs.role is not Role.PUBLIC:
            raise Unauthenticated
        if not self.role.includes(needs.role):
            raise Forbidden(f"this needs the role {needs.role}", requires=needs.role)
        if needs.scope and needs.scope not in opened(self.scopes):
            raise Forbidden(f"this needs the scope {needs.scope}", requires=needs.scope)
        asked = {Role.USER: needs.user_permission, Role.DOMAIN_ADMIN: needs.admin_permission}
        permission = asked.get(self.role)
        if permission and permission not in self.permissions:
            raise Forbidden(f"this needs the permission {permission}", requires=permission)


@dataclass
class Trail:
    """Start of a subscription, for a transport that handles positions outside of the document.

    `last_seen`, the last position of the client, precedes the position in the document. `on_start`
    is called with the first position if neither gives one.
    """

    begun: Callable[[Position], None]
    since: Position | None = None


def charge_nobody(_count: int) -> None:
    """Accept any number of bytes read: for background jobs and outside of an execution."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning in the payload of a mutation that succeeded."""

    code: str  # stable
    message: str
    path: list[str]  # inside the input


@dataclass
class Context:
    """The context of one operation: a GraphQL request, an event of a subscription, or a job."""

    world: World
    viewer: Viewer
    connection_params: dict[str, Any] | None = None  # of a socket's `connection_init`
    client_ip: str | None = None
    session_id: str | None = None  # the client's name of its session
    origin: str | None = None  # of its changes: a client recognizes its own events by it
    reason: str | None = None  # given by the client, for the journal
    # cache for the lifetime of the selection set that is being executed
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)
    trail: Trail | None = field(default=None, repr=False)
    # drops subscribers whose credential has ended, before the next event
    vigil: Callable[[], Awaitable[None]] | None = field(default=None, repr=False)
    # charges bytes read from stored messages to the viewer; raises if they exceed a limit
    charge: Callable[[int], None] = field(default=charge_nobody, repr=False)
    begun: Position | None = field(default=None, repr=False)  # journal position a query reads at
    reached: Position | None = field(default=None, init=False)  # of the last transaction
    warnings: list[Notice] = field(default_factory=list, init=False)  # of the current mutation
    # search words by the response path of the list
    sought: dict[Hashable, Sequence[Any]] = field(default_factory=dict, init=False, repr=False)
    _unit: "Unit | None" = field(default=None, init=False, repr=False)
    _loaders: dict[Any, DataLoader[Any, Any]] = field(default_factory=dict, init=False, repr=False)

    def load(self, batch: Batch[Key, Value], key: Key) -> Awaitable[Value]:
        """Load the value of `key`, batched with all keys requested in this tick.

        If one of the waiting tasks is cancelled, the others still get the value.
        """
        return asyncio.shield(self._loader(batch).load(key))

    def load_all(self, batch: Batch[Key, Value], keys: Iterable[Key]) -> Awaitable[list[Value]]:
        """Load the values of these keys, in their order."""
        return asyncio.shield(self._loader(batch).load_many(list(keys)))

    def _loader(self, batch: Batch[Key, Value]) -> DataLoader[Key, Value]:
        if batch not in self._loaders:
            self._loaders[batch] = DataLoader(
                partial(_told, batch, _name(batch), self), max_batch_size=BATCH
            )
        return self._loaders[batch]

    def forget(self) -> None:
        """Drop the loaded values.

        Call it after a change of rows outside `write_session`.
        """
        self._loaders.clear()

    def fresh(self) -> Self:
        """Return a copy for the same viewer, without loaded values and open transaction."""
        return replace(self, memo={})

    def as_another(self, viewer: Viewer) -> Self:
        """Return a copy for another viewer, inside the open transaction, if there is one."""
        other = replace(self, viewer=viewer, memo={})
        other._unit = self._unit  # noqa: SLF001 - the same class
        other.warnings = self.warnings
        return other

    async def read(
        self, statement: Select[*tuple[Any, ...]], given: Mapping[str, Any] | None = None
    ) -> Sequence[Picked]:
        """Return the rows of one select, as the open transaction of this request sees them."""
        if self._unit is not None and (rows := await self._unit.read(statement, given)) is not None:
            return rows
        return await self.world.database.read(statement, given)

    async def find(self, statement: Prepared, **given: Any) -> Sequence[Any]:
        """Return the few rows of a prepared select; `viewer` is among its parameters."""
        given["viewer"] = self.viewer.user_id
        if self._unit is None or not self._unit.is_open:
            return await self.world.database.find(statement, given)
        return await self.read(statement.made, given)

    async def follow(self, steps: Steps[Outcome]) -> Outcome:
        """Run a chain of dependent selects that may read many rows, and return its result."""
        if self._unit is None or not self._unit.is_open:
            return await self.world.database.follow(steps)
        return await told_later(steps, self._step)

    async def _step(self, step: Step) -> Sequence[Any]:
        statement, given = step
        plain = statement.made if isinstance(statement, Prepared) else statement
        return await self.read(plain, given)

    @asynccontextmanager
    async def write(self, *streams: int) -> AsyncGenerator[AsyncSession]:
        """Open a transaction that locks these streams; inside an open one, a savepoint.

        Name the streams of the users and domains that change: not always the viewer's. Loaded
        values are dropped.
        """
        streams = tuple(sorted(set(streams)))
        alone = self._unit is None
        async with self.together() as unit:
            if unit.session is None:
                unit.session = await unit.stack.enter_async_context(self.world.write(*streams))
                unit.opened = unit.session
                unit.stack.push_async_callback(unit.end)
            else:
                await journal.lock(unit.session, streams)
            async with nullcontext() if alone else _savepoint(unit.session):
                yield unit.session
            self.reached = journal.reached(unit.session)
            self.forget()

    async def apply(self, work: Callable[[Turn], Outcome], *streams: int) -> Outcome:
        """Run a function in a transaction that locks these streams.

        Inside an open one, in a savepoint. The function runs in the thread of the database and gets
        the transaction.
        """
        if self._unit is not None:
            async with self.write(*streams) as session:
                return await self.world.join(session, work)

        def noted(turn: Turn) -> tuple[Outcome, Position | None]:
            return work(turn), dict(turn.reached)

        applying = asyncio.ensure_future(self.world.apply(noted, *streams))
        outcome, self.reached = await to_the_end(applying)  # a commit must not be left unknown
        self.forget()
        return outcome

    @asynccontextmanager
    async def aside(self, *streams: int) -> AsyncGenerator[tuple[Self, AsyncSession]]:
        """Open a separate transaction, which drops no loaded values of this context.

        Inside an open transaction it is a savepoint, since a database may allow one writer only.
        """
        if self._unit is not None:
            async with self.write(*streams) as session:
                yield self, session
        else:
            apart = self.fresh()
            async with apart.write(*streams) as session:
                yield apart, session

    async def record(
        self,
        session: AsyncSession,
        stream_id: int,
        kind: ChangeKind,
        ids: Sequence[int],
        **facts: Any,
    ) -> int:
        """Write a change of these objects to the journal of a stream; return the last position.

        Too many ids for one row become several entries; a list in `facts` is split in the same way.
        """
        last = 0
        for entry in self.entries(kind, ids, **facts):
            last = await journal.record(session, stream_id, entry, at=self.world.now())
        return last

    def entries(self, kind: ChangeKind, ids: Sequence[int], **facts: Any) -> list[Entry]:
        """Return the journal entries of a change of these objects, with reason and origin."""
        if self.reason:
            facts["reason"] = self.reason
        made = []
        for start in range(0, len(ids), journal.LONGEST):
            part = slice(start, start + journal.LONGEST)
            theirs = {k: v[part] if isinstance(v, list) else v for k, v in facts.items()}
            made.append(Entry(kind, ids[part], theirs, self.origin))
        return made

    async def record_all(
        self,
        session: AsyncSession,
        told: Mapping[int, Sequence[tuple[ChangeKind, Sequence[int]]]],
        **facts: Any,
    ) -> None:
        """Write changes to the journals of many locked streams, with as few statements as for one.

        The facts are the same for all changes.
        """
        entries = {
            stream: [entry for kind, ids in kinds for entry in self.entries(kind, ids, **facts)]
            for stream, kinds in told.items()
        }
        await journal.record_all(session, entries, at=self.world.now())

    def warn(self, code: str, message: str, *, path: Sequence[str]) -> None:
        """Add a warning to the payload of the current mutation."""
        self.warnings.append(Notice(code, message, list(path)))

    @property
    def writing(self) -> bool:
        """True if a transaction has begun to write: then the code must not wait for slow work."""
        return self._unit is not None and self._unit.session is not None

    @property
    def joined(self) -> bool:
        """True if the next transaction would be part of an open one."""
        return self._unit is not None

    @property
    def trial(self) -> bool:
        """True if the open transaction is a dry run, which is rolled back."""
        return self._unit is not None and not self._unit.keep

    def afterwards(self, call: Callable[[], object]) -> None:
        """Call this after the commit: never for a dry run or after a rollback."""
        if self._unit is None:
            call()
        else:
            self._unit.after.append(call)

    @asynccontextmanager
    async def together(self, *, keep: bool = True) -> AsyncGenerator["Unit"]:
        """Combine all transactions opened inside, as for `@atomic` or an idempotency key.

        Without `commit` it is a dry run, and so is the transaction around it: all is rolled back.
        """
        if self._unit is not None:
            self._unit.keep &= keep
            yield self._unit
            return
        before = current_transaction.get()
        stack = AsyncExitStack()
        self._unit = unit = Unit(self.world.database, stack, keep)
        try:
            async with stack:
                current_transaction.set(unit)
                yield unit
                if not unit.keep:
                    self.reached = None
                    raise NotKept
            current_transaction.set(before)
            for call in unit.after:
                call()
        except NotKept:
            pass
        except asyncio.CancelledError:
            if unit.is_committed:  # the cancellation came during the commit
                for call in unit.after:
                    call()
            raise
        finally:
            current_transaction.set(before)
            self._unit = None
            self.forget()


async def _told(batch: Batch[Key, Value], name: str, ctx: Context, keys: list[Key]) -> list[Value]:
    """Run a batch function and measure the number of keys and the time."""
    BATCHES.note(len(keys), name)
    with Timed(LOADING, f"load {name}", name) as timed:
        if timed.part is not None:
            timed.part.facts["merganser.keys"] = len(keys)
        return await batch(ctx, keys)


def _name(batch: object) -> str:
    """Return the module below `resolvers` and the function: `users.loaders.by_ids`.

    A partial has the name of the function that it calls.
    """
    while isinstance(batch, partial):
        batch = batch.func
    module = getattr(batch, "__module__", "").removeprefix("resolvers.")
    return f"{module}.{getattr(batch, '__qualname__', type(batch).__qualname__)}"


class NotKept(Exception):
    """Rolls a dry run back."""


@dataclass
class Unit:
    """The transaction of a request, which nested transactions join.

    The first write opens it: before, no lock is held.
    """

    database: Database
    stack: AsyncExitStack
    keep: bool
    session: AsyncSession | None = None  # None before the first write, and after the end
    opened: AsyncSession | None = None  # the same session, also after the end
    after: list[Callable[[], object]] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_open(self) -> bool:
        """True from the first write to the end of the transaction."""
        return self.session is not None

    @property
    def is_committed(self) -> bool:
        """True if the writes of the transaction are durable."""
        return is_committed(self.opened)

    async def read(
        self, statement: Select[*tuple[Any, ...]], given: Mapping[str, Any] | None = None
    ) -> Sequence[Picked] | None:
        """Return the rows as this transaction sees them; None if it is not open."""
        if self.session is None:
            return None
        async with self.turn:  # fields that are resolved concurrently share one session
            if self.session is None:  # the transaction has ended in the meantime
                return None
            await self.session.flush()
            connection = await self.session.connection()
            return (await connection.execute(statement, given)).all()

    async def end(self) -> None:
        """Wait for running reads; later reads use the committed rows."""
        async with self.turn:
            self.session = None


@asynccontextmanager
async def _savepoint(session: AsyncSession) -> AsyncGenerator[None]:
    """Open a savepoint that also restores `session.info` if it is rolled back."""
    before = dict(session.info)
    try:
        async with session.begin_nested():
            yield
    except BaseException:
        session.info.clear()  # it describes writes that were rolled back
        session.info.update(before)
        raise

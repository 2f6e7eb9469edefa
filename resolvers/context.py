"""What every operation is handed: who asks, and the world to answer from."""

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

BATCH = 250  # keys at most; SQLite takes no more than 500 parts in a UNION

BATCHES = metrics.histogram(
    "merganser_loader_batch_keys", "Keys in a batch of a loader.", "batch", bounds=metrics.MANY
)
LOADING = metrics.histogram("merganser_loader_batch_seconds", "Time of a batch.", "batch")


class Batch(Protocol[Key, Value]):
    """Loads many keys at once: one value for each key, in the order of the keys."""

    async def __call__(self, ctx: "Context", keys: list[Key], /) -> list[Value]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Needs:
    """What a field asks of whoever uses it."""

    role: Role = Role.USER
    scope: Scope | None = None
    admin_permission: AdminPermission | None = None  # of a DOMAIN_ADMIN
    user_permission: UserPermission | None = None  # of a USER
    signed_in: "Needs | None" = None  # what is asked instead, but of a sign-in without its factor


@dataclass(slots=True, weakref_slot=True)
class Reach:
    """How far a viewer sees: one for all who are the same account in a process.

    What is not `shared` with anybody is looked for in fewer places. True is always right, and
    False may be late by as much as a credential is remembered.
    """

    shared: bool = False  # folders of others are shared with them


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who asks, and what their credential allows.

    `user_id` is 0 where the credential belongs to nobody: none was shown, or a key of the
    platform. `administers` are the domains of a DOMAIN_ADMIN, whose `permissions` are
    AdminPermissions; those of a USER are UserPermissions.
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
    operations: frozenset[str] = frozenset()  # root fields it is good for; empty = all
    pending_for: int = 0  # whose second factor is outstanding: the role is PUBLIC until then
    actor_id: int = 0  # the administrator who acts as the user
    actor_key_id: int | None = None  # or the key without an account; 0: the bootstrap key
    new_password_only: bool = False  # signed in by a temporary password
    ends_at: datetime | None = None  # of the credential
    auth_version: int = field(default=0, compare=False)  # of the user, as it was asked
    reach: Reach = field(default_factory=Reach, compare=False)

    @property
    def principal(self) -> str:
        """Whose idempotency keys are used: the user's, the key's, or the bootstrap key's."""
        if self.user_id:
            return f"user:{self.user_id}"
        return f"key:{self.api_key_id or 0}" if self.role is not Role.PUBLIC else "public"

    @property
    def acting(self) -> bool:
        """True if an administrator, or a key of the platform, acts as the user."""
        return bool(self.actor_id) or self.actor_key_id is not None

    @property
    def speaks_for_others(self) -> bool:
        """Whether it is believed who is behind it: a front end, with a key of an ADMIN."""
        return self.token_id is None and self.role.includes(Role.ADMIN)

    @property
    def credential(self) -> str:
        """What signed addresses are bound to: they end with it."""
        if self.token_id:
            return f"t{self.token_id}"
        if self.api_key_id:
            return f"k{self.api_key_id}"
        if self.app_password_id:
            return f"a{self.app_password_id}"
        return f"v{self.auth_version}" if self.user_id else "b"

    def require_scope(self, scope: Scope) -> None:
        """Raise Forbidden unless the credential is good for this."""
        self.require(Needs(scope=scope))

    def require(self, needs: Needs) -> None:
        """Raise Forbidden unless role, scope and permission suffice; Unauthenticated strangers."""
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
    """Where a follower begins, for a transport that speaks of it beside the document.

    `since`, what the peer heard last, goes before the position in the document. `begun` is called
    with the first position where neither says one.
    """

    begun: Callable[[Position], None]
    since: Position | None = None


def charge_nobody(_count: int) -> None:
    """Accept any number of bytes read: of a job, or outside of an execution."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What succeeded, but is worth knowing: a warning in the payload of a mutation."""

    code: str  # stable
    message: str
    path: list[str]  # inside the input


@dataclass
class Context:
    """One operation: a GraphQL request, one event of a stream, or a job."""

    world: World
    viewer: Viewer
    connection_params: dict[str, Any] | None = None  # of a socket's `connection_init`
    client_ip: str | None = None
    session_id: str | None = None  # the caller's own word for its session
    origin: str | None = None  # of what it changes: recognised by its followers as their own
    reason: str | None = None  # the caller's, for the journal
    # what may be kept as long as the selection that is being answered
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)
    trail: Trail | None = field(default=None, repr=False)
    # finds out whose credential has ended: what comes is not told to them
    vigil: Callable[[], Awaitable[None]] | None = field(default=None, repr=False)
    # charges bytes read from stored messages to the caller; raises if they exceed a limit
    charge: Callable[[int], None] = field(default=charge_nobody, repr=False)
    begun: Position | None = field(default=None, repr=False)  # where a query's state is read from
    reached: Position | None = field(default=None, init=False)  # where the last unit ended
    warnings: list[Notice] = field(default_factory=list, init=False)  # of the present mutation
    # what was searched for, by the place of the list in the answer
    sought: dict[Hashable, Sequence[Any]] = field(default_factory=dict, init=False, repr=False)
    _unit: "Unit | None" = field(default=None, init=False, repr=False)
    _loaders: dict[Any, DataLoader[Any, Any]] = field(default_factory=dict, init=False, repr=False)

    def load(self, batch: Batch[Key, Value], key: Key) -> Awaitable[Value]:
        """The value of `key`, fetched together with all that is asked of `batch` in this tick.

        Whoever waits for the same is not disturbed by one who is called off.
        """
        return asyncio.shield(self._loader(batch).load(key))

    def load_all(self, batch: Batch[Key, Value], keys: Iterable[Key]) -> Awaitable[list[Value]]:
        """The values of all the keys, in their order."""
        return asyncio.shield(self._loader(batch).load_many(list(keys)))

    def _loader(self, batch: Batch[Key, Value]) -> DataLoader[Key, Value]:
        if batch not in self._loaders:
            self._loaders[batch] = DataLoader(
                partial(_told, batch, _name(batch), self), max_batch_size=BATCH
            )
        return self._loaders[batch]

    def forget(self) -> None:
        """Drop what was loaded. Whoever changes rows, or outlives them, calls this."""
        self._loaders.clear()

    def fresh(self) -> Self:
        """The same viewer in the same world, with nothing loaded yet."""
        return replace(self, memo={})

    def as_another(self, viewer: Viewer) -> Self:
        """The same operation by somebody else, in the unit that is open, if one is."""
        other = replace(self, viewer=viewer, memo={})
        other._unit = self._unit  # noqa: SLF001 - it is one of us
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
        """The few rows of a select that was made once; `viewer` is among its parameters."""
        given["viewer"] = self.viewer.user_id
        if self._unit is None or not self._unit.is_open:
            return await self.world.database.find(statement, given)
        return await self.read(statement.made, given)

    async def follow(self, steps: Steps[Outcome]) -> Outcome:
        """What a search finds that may have to go through much."""
        if self._unit is None or not self._unit.is_open:
            return await self.world.database.follow(steps)
        return await told_later(steps, self._step)

    async def _step(self, step: Step) -> Sequence[Any]:
        statement, given = step
        plain = statement.made if isinstance(statement, Prepared) else statement
        return await self.read(plain, given)

    @asynccontextmanager
    async def write(self, *streams: int) -> AsyncGenerator[AsyncSession]:
        """A unit of work on what belongs to these streams; a savepoint of the unit around it.

        Name those that are acted on: not always the viewer's. What was loaded is forgotten.
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
        """A unit that is a plain function of its turn; a savepoint of the unit around it."""
        if self._unit is not None:
            async with self.write(*streams) as session:
                return await self.world.join(session, work)

        def noted(turn: Turn) -> tuple[Outcome, Position | None]:
            return work(turn), dict(turn.reached)

        applying = asyncio.ensure_future(self.world.apply(noted, *streams))
        outcome, self.reached = await to_the_end(applying)  # whether it is stored must be known
        self.forget()
        return outcome

    @asynccontextmanager
    async def aside(self, *streams: int) -> AsyncGenerator[tuple[Self, AsyncSession]]:
        """A unit beside what is being read: nothing loaded is forgotten by it.

        Inside an open unit it is a part of that one, since a store may have but one writer.
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
        """Write to the journal what this unit does to these objects; returns the last number.

        More than a row may hold become several; a list among the facts goes along in order.
        """
        last = 0
        for entry in self.entries(kind, ids, **facts):
            last = await journal.record(session, stream_id, entry, at=self.world.now())
        return last

    def entries(self, kind: ChangeKind, ids: Sequence[int], **facts: Any) -> list[Entry]:
        """What is to be recorded of a change to these objects, with its reason and origin."""
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
        """What `record` does, for many streams, which are held: in as few statements as for one.

        The facts are those of all.
        """
        entries = {
            stream: [entry for kind, ids in kinds for entry in self.entries(kind, ids, **facts)]
            for stream, kinds in told.items()
        }
        await journal.record_all(session, entries, at=self.world.now())

    def warn(self, code: str, message: str, *, path: Sequence[str]) -> None:
        """Add a warning to the payload of the present mutation."""
        self.warnings.append(Notice(code, message, list(path)))

    @property
    def writing(self) -> bool:
        """Whether a unit of work is open: nothing slow may be waited for."""
        return self._unit is not None and self._unit.session is not None

    @property
    def joined(self) -> bool:
        """Whether what is written now is a part of something larger."""
        return self._unit is not None

    @property
    def trial(self) -> bool:
        """Whether nothing of it will be stored."""
        return self._unit is not None and not self._unit.keep

    def afterwards(self, call: Callable[[], object]) -> None:
        """Call this when all is stored: never of a trial, nor of what is rolled back."""
        if self._unit is None:
            call()
        else:
            self._unit.after.append(call)

    @asynccontextmanager
    async def together(self, *, keep: bool = True) -> AsyncGenerator["Unit"]:
        """All units opened inside are one: an `@atomic` request, an answer kept with its effect.

        Without `keep` it is a trial, and so is the unit around it: nothing is stored.
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
    """What a batch brings; its size and time are told by its name."""
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
    """Rolls a trial back."""


@dataclass
class Unit:
    """A unit of work that can be joined. The first to write opens it: no lock is held before."""

    database: Database
    stack: AsyncExitStack
    keep: bool
    session: AsyncSession | None = None  # None before the first write, and after the end
    opened: AsyncSession | None = None  # the same session, also after the end
    after: list[Callable[[], object]] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_open(self) -> bool:
        """True from the first write to the end of the unit."""
        return self.session is not None

    @property
    def is_committed(self) -> bool:
        """True if what the unit has written is durable."""
        return is_committed(self.opened)

    async def read(
        self, statement: Select[*tuple[Any, ...]], given: Mapping[str, Any] | None = None
    ) -> Sequence[Picked] | None:
        """Return the rows as this unit sees them; None if it has no transaction open."""
        if self.session is None:
            return None
        async with self.turn:  # fields that are resolved at once share one session
            if self.session is None:  # the unit has ended while we waited
                return None
            await self.session.flush()
            connection = await self.session.connection()
            return (await connection.execute(statement, given)).all()

    async def end(self) -> None:
        """Let who is reading finish; who comes later reads what is stored."""
        async with self.turn:
            self.session = None


@asynccontextmanager
async def _savepoint(session: AsyncSession) -> AsyncGenerator[None]:
    before = dict(session.info)
    try:
        async with session.begin_nested():
            yield
    except BaseException:
        session.info.clear()  # what it says of the unit went back with it
        session.info.update(before)
        raise

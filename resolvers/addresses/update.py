"""Update addresses, one or many."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import normal
from mail.recipients import forward_targets
from models.addresses.tables import Address, AddressKind
from models.errors import Conflict, Invalid, Problems, Refused
from models.events.journal import PLATFORM
from models.runtime.secret_box import Sealed
from models.store.columns import Picked, picked, table_of
from models.users.roles import Role
from resolvers.addresses import autoreplies, main_address
from resolvers.addresses.autoreplies import Replies
from resolvers.addresses.events import News, tell
from resolvers.addresses.loaders import Named, chosen
from resolvers.addresses.main_address import Changed
from resolvers.addresses.mutations import (
    SHOWN,
    TAKEN,
    forbidden,
    free,
    in_charge,
    in_order,
    refuse_others,
    streams_of,
)
from resolvers.addresses.targets import Targets, checked_targets, names_of, refuse_itself
from resolvers.addresses.validation import consistent, facts, spelled, word
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.users.delete import count_places
from resolvers.users.selection import managed_one

AT = ("set",)  # the place of the patch in the input
REPLY = (*AT, "autoreply")
OF_OWNERS = frozenset({"name", "main"})
OF_MASKED = OF_OWNERS | {"active"}  # of temporary addresses
LOGGED = ("name", "tags", *SHOWN)


@dataclass(frozen=True, slots=True)
class Patch:
    """The new values of addresses. Values that are not given stay; None clears a column."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    address: str | None = None
    main: bool | None = None
    targets: Sequence[str] | None = None
    autoreply: Mapping[str, Any] | None = None  # by column
    unanswered: bool = False

    @property
    def names(self) -> set[str]:
        """Names of the columns that the patch changes."""
        more = {"address": self.address, "main": self.main, "targets": self.targets}
        found = {*self.facts, *(name for name, given in more.items() if given is not None)}
        return found | {"autoreply"} if self.unanswered or self.autoreply is not None else found


@dataclass
class Work:
    """Stored addresses with the new values of each, by address id and column."""

    rows: Sequence[Picked]
    values: dict[int, dict[str, Any]] = field(default_factory=dict)
    replies: Replies = field(default_factory=Replies)

    def fresh(self, row: Picked) -> dict[str, Any]:
        """Return the new values that differ from the stored ones."""
        values = self.values.get(row.id, {})
        return {name: value for name, value in values.items() if getattr(row, name) != value}

    def as_it_will_be(self, row: Picked) -> Any:
        """Return the address with its new values."""
        stored = {column.name: getattr(row, column.name) for column in picked(Address)}
        return SimpleNamespace(**{**stored, **self.values.get(row.id, {})})


async def change(ctx: Context, refs: Sequence[Named], patch: Patch) -> list[int]:
    """Update addresses, all or none, and return their ids in the order of the references.

    Owners change name and main address; other columns need an administrator of the domain.
    Raises InvalidInput, NotFound, Forbidden, LimitReached, or Conflict if another transaction
    changed an address or the new text is in use.
    """
    if not patch.names:
        raise Invalid("change at least one thing", constraint="required", path=AT)
    problems = Problems()
    columns, shown = facts(patch.facts, problems, AT), None
    with problems.caught():
        if patch.address is not None:
            shown = spelled(patch.address, wildcard=False, path=[*AT, "address"])
    said = dict[str, Any]()
    with problems.caught():
        if patch.autoreply is not None:
            said = autoreplies.facts(patch.autoreply, REPLY)
    problems.settle()
    seen = await chosen(ctx, refs)
    _alone(seen, patch)
    streams = streams_of(seen)
    for row in _owned(seen, patch):
        user = await managed_one(ctx, row.user_id, path="addresses")
        streams.add(user.domain_id or PLATFORM)
    if shown is not None:
        there = await domain_loaders.named(ctx, normal(shown).domain)
        streams |= {there.id} if there else set()
    try:
        async with ctx.write(*streams) as session:
            rows = await in_order(ctx, [row.id for row in seen], ["addresses"])
            if not streams_of(rows) <= streams:
                raise Conflict("an address was changed meanwhile", path=["addresses"])
            await _refuse(ctx, rows, patch)
            work = Work(rows, {row.id: dict(columns) for row in rows})
            if {"autoreply", "kind"} & patch.names:
                work.replies = await autoreplies.there(session, rows)
            await _prepare(ctx, session, work, replace(patch, autoreply=said or None), shown)
            await _apply(ctx, session, work, patch, streams)
    except IntegrityError as clash:  # another writer inserted the same address first
        raise Conflict(TAKEN, path=[*AT, "address"]) from clash
    return [row.id for row in seen]


def _owned(rows: Sequence[Picked], patch: Patch) -> list[Picked]:
    """Return the addresses that are the main address of their user, or become it."""
    touched = patch.main or patch.address is not None
    return [row for row in rows if touched and row.user_id and (patch.main or row.main)]


def _alone(rows: Sequence[Picked], patch: Patch) -> None:
    """Raise InvalidInput if the patch has values for one address only but there are several."""
    several = {"address": patch.address is not None, "main": bool(patch.main)}
    for name, given in several.items():
        if given and len(rows) > 1:
            words = "that is of one address only"
            raise Invalid(words, constraint="exclusive", path=[*AT, name])


async def _refuse(ctx: Context, rows: Sequence[Picked], patch: Patch) -> None:
    """Raise Forbidden if the viewer may not make these changes to one of the addresses."""
    for index, row in enumerate(rows):
        if in_charge(ctx, row):
            continue
        able = OF_MASKED if row.masked else OF_OWNERS
        if row.user_id == ctx.viewer.user_id and (more := sorted(patch.names - able)):
            needed = Role.ADMIN if ctx.viewer.role is Role.DOMAIN_ADMIN else Role.DOMAIN_ADMIN
            words = f"to change {word(more[0])} needs the role {needed}"
            raise forbidden(words, needed, [*AT, word(more[0])], index)
    await refuse_others(ctx, rows, ["addresses"])


async def _prepare(
    ctx: Context, session: AsyncSession, work: Work, patch: Patch, shown: str | None
) -> None:
    """Compute the new values of each address.

    Raises an error with the index of the first address that can't be changed so.
    """
    names = await names_of(ctx, {row.domain_id for row in work.rows})
    learns = bool(ctx.world.options.rspamd_learn)
    for index, row in enumerate(work.rows):
        try:
            problems = Problems()
            with problems.caught():
                _kind(row, work, patch)
            with problems.caught():
                _targets(ctx, row, work, patch)
            with problems.caught():
                _reply(ctx, row, work, patch)
            with problems.caught():
                _main(ctx, row, work, patch)
            consistent(work.as_it_will_be(row), problems, AT, learns=learns)
            problems.settle()
            if shown is not None:
                await _rename(ctx, session, row, work, shown)
            refuse_itself(work.as_it_will_be(row), names, [*AT, "targets"])
        except Refused as refusal:
            for one in refusal.each:
                one.index = index if one.index is None else one.index
            raise


def _kind(row: Picked, work: Work, patch: Patch) -> None:
    kind = patch.facts.get("kind", row.kind)
    if kind is None or (kind is AddressKind.MAILBOX) is not (row.kind is AddressKind.MAILBOX):
        words = "an address stays a MAILBOX, or stays none: make another one"
        raise Invalid(words, constraint="kind", path=[*AT, "kind"])
    if kind is not AddressKind.FORWARD and patch.targets is None and row.targets:
        work.values[row.id] |= {"targets": [], "relays": None}


def _targets(ctx: Context, row: Picked, work: Work, patch: Patch) -> None:
    if patch.targets is None:
        return
    try:
        known = forward_targets.opened(ctx.world, row.id, row.relays)
    except Sealed:  # the key is lost, so the passwords must be given again
        known = {}
    to: Targets = checked_targets(ctx, patch.targets, known, [*AT, "targets"])
    work.values[row.id]["targets"] = list(to.shown)
    if dict(to.relays) != known:
        work.values[row.id]["relays"] = forward_targets.sealed(ctx.world, row.id, to.relays)


def _reply(ctx: Context, row: Picked, work: Work, patch: Patch) -> None:
    kind = patch.facts.get("kind") or row.kind
    if patch.autoreply is not None:
        autoreplies.able(kind, REPLY)
        now, said = ctx.world.now(), patch.autoreply
        answers = autoreplies.change(work.replies, row.id, said, now, REPLY)
        work.values[row.id]["answers"] = answers
    elif row.id in work.replies.were and (patch.unanswered or kind is not AddressKind.FORWARD):
        autoreplies.clear(work.replies, row.id)
        work.values[row.id]["answers"] = False


def _main(ctx: Context, row: Picked, work: Work, patch: Patch) -> None:
    if patch.main is False and row.main:
        words = "name another address as main"
        raise Invalid(words, constraint="main", path=[*AT, "main"])
    if patch.main:
        work.values[row.id]["main"] = True
    ends = patch.facts.get("expires_at")
    if ends and ends <= ctx.world.now():
        raise Invalid("that is over already", constraint="min", path=[*AT, "expiresAt"])


async def _rename(ctx: Context, session: AsyncSession, row: Picked, work: Work, shown: str) -> None:
    """Set a new text of an address, after checking that it is free.

    Raises InvalidInput for a catch-all and the errors of `lock_or_create_domain`.
    """
    path = [*AT, "address"]
    if "*" in row.shown:
        words = "a pattern is not renamed: make another one"
        raise Invalid(words, constraint="wildcard", path=path)
    local, name = normal(shown)
    key = row.domain_id
    if name != normal(row.shown).domain:
        try:
            domain = await domain_loaders.ensure(ctx, session, name, path="address", within=AT)
        except Refused as refusal:
            refusal.path = path
            raise
        key = domain.id
    await free(ctx, local, key, path, but=row.id)
    work.values[row.id] |= {"local": local, "shown": shown, "domain_id": key}


async def _apply(
    ctx: Context, session: AsyncSession, work: Work, patch: Patch, streams: Collection[int]
) -> None:
    """Store the changed values and record them in the journals and the admin log.

    Addresses with the same new values share one statement.
    """
    connection, now = await session.connection(), ctx.world.now()
    changed, moved, table = list[Picked](), dict[int, int | None](), table_of(Address)
    alike: dict[str, list[int]] = {}
    for row in work.rows:
        fresh = work.fresh(row)
        if fresh or row.id in work.replies.changed:
            changed.append(row)
            alike.setdefault(repr(work.values[row.id]), []).append(row.id)
        if "domain_id" in fresh:
            moved[row.id] = row.domain_id
    mains = Changed()
    for row in _owned(changed, patch):  # first, since a user has at most one main address
        user, new = await managed_one(ctx, row.user_id, path="addresses"), work.as_it_will_be(row)
        if (user.domain_id or PLATFORM) not in streams:
            raise Conflict("the account has moved meanwhile", path=["addresses"])
        path = [*AT, "main" if patch.main else "address"]
        mains = await main_address.change(ctx, session, user, new, path)
    for keys in alike.values():
        values = {**work.values[keys[0]], "updated_at": now}
        await connection.execute(update(table).where(table.c.id.in_(keys)).values(values))
    await autoreplies.store(session, work.replies)
    for sign, places in ((-1, moved), (1, {key: work.values[key]["domain_id"] for key in moved})):
        gone = [{"domain_id": place} for place in places.values()]
        await count_places(ctx, session, [], gone, sign=sign)
    after = [work.as_it_will_be(row) for row in changed]
    others = [row for row in mains.rows if row.id not in {one.id for one in changed}]
    await tell(ctx, session, [*after, *others], News(None, moved, mains.users))
    log = [
        _done(row, work.fresh(row), work.replies)
        for row in changed
        if row.user_id != ctx.viewer.user_id or not row.user_id
    ]
    await admin_log.note(ctx, session, *log)


def _done(row: Picked, fresh: Mapping[str, Any], replies: Replies) -> Done:
    names = [name for name in (*LOGGED, "shown") if name in fresh]
    before = {word(name): getattr(row, name) for name in names}
    after = {word(name): fresh[name] for name in names}
    if row.id in replies.changed:
        before["autoreply"], after["autoreply"] = replies.logged(row.id)
    return Done("addressUpdate", "Address", row.id, row.domain_id, before, after)

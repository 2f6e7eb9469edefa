"""Push channels: where users are told of new mail, and who may say so."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Select, bindparam, delete, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.outbound_http import target
from mail.text.bounded_regex import Expression
from models.errors import Invalid, NotFound, Problems
from models.events.journal import ChangeKind, Stream
from models.events.wakeups import PUSHES
from models.notifications.push_channels import PushChannel, PushKind
from models.runtime.secret_box import Sealed
from models.store.columns import Picked, picked, table_of
from models.users.roles import AdminPermission, Role
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.context import Context, Needs
from resolvers.mailboxes.loaders import Named, named_of_each
from resolvers.mailboxes.owners import Held
from resolvers.notifications import web_push
from resolvers.notifications.push_requests import TEXT, TITLE, opened, place_of
from resolvers.notifications.push_worker import CHANGED
from resolvers.pagination import all_by_keys, by_keys
from resolvers.submission.sender_patterns import checked_pattern
from resolvers.users import managed_objects
from resolvers.users.selection import Users, chosen

SENDERS = 100  # patterns of a channel
FOLDERS = 100  # of a channel
CREDENTIAL = 512  # characters of a key or a token
PARTS = {  # what each kind needs, and what it may have besides
    PushKind.PUSHOVER: (("key", "token"), ()),
    PushKind.WEB_PUSH: (("endpoint",), ()),
    PushKind.HTTP: (("endpoint",), ("token",)),
}
FIXED = ("id", "user_id", "kind", "created_at")
SHOWN = frozenset(column.name for column in picked(PushChannel)) - {"target", "lease", "holder"}
LOGGED = (
    "kind", "active", "title", "text", "senders", "senders_regex", "only_priority",
    "evaluate_priority",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a channel of a kind is to be; what is not among it stays as it is.

    `target` has key, token and endpoint, as far as they are given; None takes one away.
    """

    kind: PushKind
    values: Mapping[str, Any] = field(default_factory=dict)  # by column
    target: Mapping[str, Any] = field(default_factory=dict, repr=False)
    mailboxes: Sequence[Named] | None = None


async def set_(ctx: Context, users: Users, wanted: Wanted) -> list[int]:
    """Give each of these accounts such a channel, or change the one it has; their ids."""
    rows = await chosen(ctx, users)
    _permitted(ctx, [row.id for row in rows])
    values, given = _checked(ctx, wanted)
    held = [row.id for row in rows]
    async with ctx.write(*held) as session:
        there = await _there(session, held, wanted.kind)
        boxes = await _boxes(Held(ctx, session, rows), wanted.mailboxes)
        lasts = await _lasts(ctx, held)
        made, log = [], []
        for user in rows:
            before = there.get(user.id)
            own = values if boxes is None else {**values, "mailboxes": boxes[user.id]}
            row = _row(ctx, (user.id, wanted.kind), before, (own, given), lasts[user.id])
            made.append((before, row))
            known = None if before is None else _logged(before._asdict())
            log.append(
                Done(
                    "pushChannelSet", "PushChannel", row["id"], user.domain_id, known, _logged(row)
                )
            )
        await _write(session, made)
        await _tell(ctx, session, held, wanted.kind, log)
    _wake(ctx)
    return [row["id"] for _, row in made]


def _permitted(ctx: Context, users: Sequence[int]) -> None:
    """For others' channels a DOMAIN_ADMIN needs both: what is pushed is of their mail."""
    if any(user != ctx.viewer.user_id for user in users):
        for permission in (AdminPermission.PUSHOVER, AdminPermission.LOGIN_AS):
            ctx.viewer.require(Needs(role=Role.DOMAIN_ADMIN, admin_permission=permission))


def _checked(ctx: Context, wanted: Wanted) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns and the parts of the target that are given; Invalid with all that is wrong."""
    problems, values, given = Problems(), dict(wanted.values), dict(wanted.target)
    needs, may = PARTS[wanted.kind]
    for name, part in wanted.target.items():
        with problems.caught():
            if name not in (*needs, *may):
                text = f"a channel of the kind {wanted.kind} has none"
                raise Invalid(text, constraint="exclusive", path=[name])
            if part is not None:
                given[name] = _part(ctx, wanted.kind, name, part)
    for name, most in (("title", TITLE), ("text", TEXT)):
        with problems.caught():
            _check_words(values.get(name), name, most)
    with problems.caught():
        if values.get("senders") is not None:
            values["senders"] = _senders(values["senders"])
    with problems.caught():
        if values.get("senders_regex") is not None:
            Expression(values["senders_regex"])
    with problems.caught():
        if wanted.mailboxes is not None and len(wanted.mailboxes) > FOLDERS:
            raise Invalid(f"at most {FOLDERS} folders", constraint="max", path=["mailboxes"])
    problems.settle()
    return values, given


def _part(ctx: Context, kind: PushKind, name: str, given: Any) -> Any:
    private = ctx.world.options.push_private
    if name != "endpoint":
        if not 0 < len(given) <= CREDENTIAL or not given.isascii() or not given.isprintable():
            text = f"1 to {CREDENTIAL} printable characters of ASCII"
            raise Invalid(text, constraint="format", path=[name])
        return given
    if kind is PushKind.WEB_PUSH:
        return web_push.checked(given, private=private)
    if not isinstance(given, str):
        raise Invalid("an address as text", constraint="format", path=[name])
    target(given, private=private, path=[name])
    return given


def _check_words(text: str | None, name: str, most: int) -> None:
    if text is not None and not (0 < len(text) <= most and text.strip()):
        raise Invalid(f"1 to {most} characters", constraint="length", path=[name])
    if text is not None and not text.replace("\n", "").isprintable():
        raise Invalid("without control characters", constraint="pattern", path=[name])


def _senders(given: Sequence[str]) -> list[str]:
    if len(given) > SENDERS:
        raise Invalid(f"at most {SENDERS} senders", constraint="max", path=["senders"])
    patterns = (checked_pattern(one, ["senders"], nth) for nth, one in enumerate(given))
    return list(dict.fromkeys(patterns))


async def _there(session: AsyncSession, users: Sequence[int], kind: PushKind) -> dict[int, Picked]:
    """The channels of this kind that these accounts have, by account; held from the worker."""
    asked = select(*picked(PushChannel)).where(
        col(PushChannel.user_id).in_(users), col(PushChannel.kind) == kind
    )
    held = asked.order_by(col(PushChannel.id)).with_for_update()
    rows = (await (await session.connection()).execute(held)).all()
    return {row.user_id: row for row in rows}


async def _boxes(held: Held, names: Sequence[Named] | None) -> dict[int, list[int]] | None:
    """The folders that are named, of each account; NotFound where it has one not."""
    if names is None:
        return None
    found: defaultdict[int, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        try:
            boxes = await named_of_each(held, name)
        except NotFound as refusal:
            raise NotFound(refusal.ref, path=["mailboxes"], index=index) from None
        for box in boxes:
            if box.id not in found[box.user_id]:
                found[box.user_id].append(box.id)
    return found


async def _lasts(ctx: Context, users: Sequence[int]) -> dict[int, int]:
    """Where the journals of these accounts stand."""
    asked = select(col(Stream.id), col(Stream.last)).where(col(Stream.id).in_(users))
    return {row.id: row.last for row in await ctx.read(asked)}


def _row(
    ctx: Context,
    of: tuple[int, PushKind],
    before: Picked | None,
    given: tuple[Mapping[str, Any], Mapping[str, Any]],
    last: int,
) -> dict[str, Any]:
    """A channel as it is to be. What comes before it is switched on is none of its."""
    values, parts = given
    now = ctx.world.now()
    row: dict[str, Any] = {
        "id": ctx.world.key(),
        "user_id": of[0],
        "kind": of[1],
        "active": True,
        "title": None,
        "text": None,
        "senders": [],
        "senders_regex": None,
        "only_priority": False,
        "evaluate_priority": False,
        "mailboxes": [],
        "number": last,
        "test_at": None,
        "last_push_at": None,
        "window_at": None,
        "pushed": 0,
        "created_at": now,
    }
    if before is not None:
        row |= before._asdict()
    row |= values
    if before is not None and row["active"] and not before.active:
        row["number"] = last
    fresh = {"failures": 0, "retry_at": None, "last_error": None, "updated_at": now}
    freed = {"lease": None, "holder": None}  # whoever is at it stops
    sealed = _sealed(ctx, row, before, parts)
    return {**row, **fresh, **freed, "target": sealed}


def _sealed(
    ctx: Context, row: Mapping[str, Any], before: Picked | None, parts: Mapping[str, Any]
) -> str:
    """Where it leads, sealed; Invalid where something is missing."""
    known: dict[str, Any] = {}
    if before is not None:
        try:
            known = opened(ctx.world, before)
        except Sealed:
            known = {}  # it must be given anew
    known = {name: part for name, part in {**known, **parts}.items() if part is not None}
    for name in PARTS[row["kind"]][0]:
        if name not in known:
            raise Invalid(
                f"a channel of this kind needs it: {name}", constraint="required", path=[name]
            )
    return ctx.world.vault.seal(orjson.dumps(known).decode(), place_of(row["id"]))


async def _write(session: AsyncSession, made: Sequence[tuple[Any, dict[str, Any]]]) -> None:
    connection = await session.connection()
    new = [row for before, row in made if before is None]
    if new:
        await connection.execute(insert(PushChannel), new)
    table = table_of(PushChannel)
    names = [column.name for column in table.c if column.name not in FIXED]
    changed = update(table).where(table.c.id == bindparam("its_id"))
    changed = changed.values({name: bindparam(f"its_{name}") for name in names})
    given = [
        {f"its_{name}": value for name, value in row.items() if name == "id" or name in names}
        for before, row in made
        if before is not None
    ]
    if given:
        await connection.execute(changed, given)


async def _tell(
    ctx: Context, session: AsyncSession, users: Sequence[int], kind: str, log: Sequence[Done]
) -> None:
    """Tell the accounts in their journals and security logs, and of others the administrators."""
    told = {user: [(ChangeKind.USER_CHANGED, [user])] for user in users}
    await ctx.record_all(session, told, changed=[CHANGED])
    events = [Event("push channel set", user, target=kind) for user in users]
    await security_log.note_all(ctx, session, events)
    others = [one for one, user in zip(log, users, strict=True) if user != ctx.viewer.user_id]
    await admin_log.note(ctx, session, *others)


def _logged(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in LOGGED}


def _wake(ctx: Context) -> None:
    """Let the worker look, who may have nothing to do so far."""
    ctx.afterwards(lambda: ctx.world.wakeups.tell({PUSHES: 0}))


async def test(ctx: Context, ids: Sequence[int]) -> None:
    """Have a sample pushed to these channels, even where they are switched off."""
    owners = await _owners(ctx, ids)
    async with ctx.write(*owners) as session:
        rows = await _held(ctx, session, ids)
        this = update(PushChannel).where(col(PushChannel.id).in_(ids))
        values = {"test_at": ctx.world.now(), "retry_at": None}
        await (await session.connection()).execute(this.values(values))
        await admin_log.note(ctx, session, *_of_others(ctx, rows, "pushChannelTest"))
    _wake(ctx)


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Remove these channels, all or none."""
    owners = await _owners(ctx, ids)
    async with ctx.write(*owners) as session:
        rows = await _held(ctx, session, ids)
        gone = delete(PushChannel).where(col(PushChannel.id).in_(ids))
        await (await session.connection()).execute(gone)
        told = {user: [(ChangeKind.USER_CHANGED, [user])] for user in owners}
        await ctx.record_all(session, told, changed=[CHANGED])
        events = [Event("push channel delete", row.user_id, target=row.kind) for row in rows]
        await security_log.note_all(ctx, session, events)
        await admin_log.note(ctx, session, *_of_others(ctx, rows, "pushChannelDelete"))


def _of_others(ctx: Context, rows: Sequence[Picked], mutation: str) -> list[Done]:
    return [
        Done(mutation, "PushChannel", row.id, row.domain_id, {"kind": row.kind})
        for row in rows
        if row.user_id != ctx.viewer.user_id
    ]


async def _owners(ctx: Context, ids: Sequence[int]) -> list[int]:
    return managed_objects.owners(ids, await by_ids(ctx, list(ids)))


async def _held(ctx: Context, session: AsyncSession, ids: Sequence[int]) -> list[Picked]:
    return await managed_objects.held(ctx, session, PushChannel, SHOWN, (ids, _visible(ctx)))


def _visible(ctx: Context) -> ColumnElement[bool]:
    return managed_objects.visible(ctx, PushChannel, AdminPermission.PUSHOVER)


def _seen(ctx: Context) -> Select[*tuple[Any, ...]]:
    return select(*picked(PushChannel, SHOWN)).where(_visible(ctx))


async def of_users(ctx: Context, keys: list[int]) -> list[list[Picked]]:
    """The channels of accounts, by kind."""
    rows = _seen(ctx).order_by(col(PushChannel.kind))
    return await all_by_keys(ctx, rows, col(PushChannel.user_id), keys)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The channels with these ids, in this order; None where the viewer sees none."""
    return await by_keys(ctx, _seen(ctx), col(PushChannel.id), ids)

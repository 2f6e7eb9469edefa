"""Create, update, test and delete push channels, which notify users of new mail."""

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
CREDENTIAL = 512  # characters
PARTS = {  # required and optional parts by kind
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
    """New settings of a push channel of a kind. Absent settings stay unchanged.

    `target` can have key, token and endpoint; None removes one.
    """

    kind: PushKind
    values: Mapping[str, Any] = field(default_factory=dict)  # by column
    target: Mapping[str, Any] = field(default_factory=dict, repr=False)
    mailboxes: Sequence[Named] | None = None


async def set_(ctx: Context, users: Users, wanted: Wanted) -> list[int]:
    """Create or update the channel of a kind of each of these accounts; returns the channel ids.

    Raises Invalid, NotFound if an account or mailbox does not exist, and Forbidden if the viewer
    may not read the mail of these accounts.
    """
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
    """Raise Forbidden if the viewer may not manage channels of these users."""
    if any(user != ctx.viewer.user_id for user in users):
        for permission in (AdminPermission.PUSHOVER, AdminPermission.LOGIN_AS):
            ctx.viewer.require(Needs(role=Role.DOMAIN_ADMIN, admin_permission=permission))


def _checked(ctx: Context, wanted: Wanted) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the new columns and the new parts of the target.

    Raises Invalid with all that is wrong.
    """
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
    """Read and lock the channels of this kind, by user."""
    asked = select(*picked(PushChannel)).where(
        col(PushChannel.user_id).in_(users), col(PushChannel.kind) == kind
    )
    held = asked.order_by(col(PushChannel.id)).with_for_update()
    rows = (await (await session.connection()).execute(held)).all()
    return {row.user_id: row for row in rows}


async def _boxes(held: Held, names: Sequence[Named] | None) -> dict[int, list[int]] | None:
    """Return the ids of the named mailboxes of each account.

    Raises NotFound if an account lacks one.
    """
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
    """Return the last position in the journal of each account."""
    asked = select(col(Stream.id), col(Stream.last)).where(col(Stream.id).in_(users))
    return {row.id: row.last for row in await ctx.read(asked)}


def _row(
    ctx: Context,
    of: tuple[int, PushKind],
    before: Picked | None,
    given: tuple[Mapping[str, Any], Mapping[str, Any]],
    last: int,
) -> dict[str, Any]:
    """Return the columns of a new or changed channel.

    A new or reactivated channel starts at `stream_position`, so that earlier mail is not pushed.
    """
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
    freed = {"lease": None, "holder": None}  # a worker that serves the channel stops
    sealed = _sealed(ctx, row, before, parts)
    return {**row, **fresh, **freed, "target": sealed}


def _sealed(
    ctx: Context, row: Mapping[str, Any], before: Picked | None, parts: Mapping[str, Any]
) -> str:
    """Return the encrypted target. Raises Invalid if a required part is missing."""
    known: dict[str, Any] = {}
    if before is not None:
        try:
            known = opened(ctx.world, before)
        except Sealed:
            known = {}  # all parts must be given again
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
    """Record the changes in journals, security logs and, for other users, in the admin log."""
    told = {user: [(ChangeKind.USER_CHANGED, [user])] for user in users}
    await ctx.record_all(session, told, changed=[CHANGED])
    events = [Event("push channel set", user, target=kind) for user in users]
    await security_log.note_all(ctx, session, events)
    others = [one for one, user in zip(log, users, strict=True) if user != ctx.viewer.user_id]
    await admin_log.note(ctx, session, *others)


def _logged(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in LOGGED}


def _wake(ctx: Context) -> None:
    """Wake the push worker after the transaction."""
    ctx.afterwards(lambda: ctx.world.wakeups.tell({PUSHES: 0}))


async def test(ctx: Context, ids: Sequence[int]) -> None:
    """Push a test notification to these channels, also to inactive ones.

    Raises NotFound or Forbidden.
    """
    owners = await _owners(ctx, ids)
    async with ctx.write(*owners) as session:
        rows = await _held(ctx, session, ids)
        this = update(PushChannel).where(col(PushChannel.id).in_(ids))
        values = {"test_at": ctx.world.now(), "retry_at": None}
        await (await session.connection()).execute(this.values(values))
        await admin_log.note(ctx, session, *_of_others(ctx, rows, "pushChannelTest"))
    _wake(ctx)


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete these channels, all or none. Raises NotFound or Forbidden."""
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
    """Load the channels of each account, sorted by kind."""
    rows = _seen(ctx).order_by(col(PushChannel.kind))
    return await all_by_keys(ctx, rows, col(PushChannel.user_id), keys)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load channels, in the order of the ids; None if the viewer does not see one."""
    return await by_keys(ctx, _seen(ctx), col(PushChannel.id), ids)

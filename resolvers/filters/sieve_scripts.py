"""Sieve scripts: loading them, and a dry run on a message."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlmodel import col

from mail import mime, sieve
from mail.filters import script_environment
from mail.filters.script_cache import program_of
from mail.filters.script_environment import Script
from mail.sieve import (
    Action,
    Discard,
    Envelope,
    FileInto,
    Keep,
    Notify,
    Plan,
    Problem,
    Redirect,
    Reject,
    RunError,
    SieveError,
    Traced,
    Vacation,
)
from models.errors import NotFound
from models.filters.sieve_scripts import SieveScript
from models.messages.tables import Message
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import AdminPermission, Scope, opened
from resolvers import pagination
from resolvers.access import visible
from resolvers.context import Context
from resolvers.messages import content as message_content
from resolvers.pagination import Scan, by_keys
from resolvers.users import managed_objects

ORDER = "sieve-scripts"  # sorted by name, then ID
SHOWING = frozenset({Scope.READ, Scope.SIEVE})  # each of them allows reading scripts
REASON = 200  # characters of a vacation reason in a description
PLACE = frozenset({"id", "name", "user_id"})


def seen(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that the viewer can see a script: their own, and those they manage."""
    return managed_objects.visible(ctx, SieveScript, AdminPermission.FILTERS)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load these scripts, in this order. None if viewer or credential can't see one."""
    if not SHOWING & opened(ctx.viewer.scopes):
        return [None] * len(ids)
    return await by_keys(ctx, select(*picked(SieveScript)).where(seen(ctx)), _ID, ids)


_ID = col(SieveScript.id)


async def named(ctx: Context, keys: list[tuple[int, str]]) -> list[Picked | None]:
    """Load scripts by user ID and name, in this order, with one statement."""
    these = [
        and_(col(SieveScript.user_id) == user, col(SieveScript.name) == name)
        for user, name in dict.fromkeys(keys)
    ]
    statement = select(*picked(SieveScript)).where(seen(ctx), or_(*these))
    found = {(row.user_id, row.name): row for row in await ctx.read(statement)}
    return [found.get(key) for key in keys]


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of the scripts of a user, sorted by name."""

    user_id: int
    ask: Ask
    columns: frozenset[str]


async def pages(ctx: Context, keys: list[OfUser]) -> list[Page[Picked]]:
    """Load the pages of these listings, each in reading order."""
    names = PLACE.union(*(key.columns for key in keys))
    rows = select(*picked(SieveScript, names)).where(seen(ctx))
    place = (col(SieveScript.name), _ID)
    scans = [
        Scan(rows.where(col(SieveScript.user_id) == key.user_id), key.ask, place, falling=False)
        for key in keys
    ]
    return await pagination.pages(ctx, scans)


async def counts(ctx: Context, keys: list[OfUser]) -> list[int]:
    """Count the scripts of these listings."""
    statement = (
        select(col(SieveScript.user_id), func.count().label("many"))
        .where(seen(ctx), col(SieveScript.user_id).in_({key.user_id for key in keys}))
        .group_by(col(SieveScript.user_id))
    )
    many = {row.user_id: row.many for row in await ctx.read(statement)}
    return [many.get(key.user_id, 0) for key in keys]


async def runs(ctx: Context, user_id: int) -> bool:
    """True if the user has an active script that the viewer can see."""
    statement = select(_ID).where(seen(ctx), col(SieveScript.user_id) == user_id)
    return bool(await ctx.read(statement.where(col(SieveScript.active))))


async def exported(ctx: Context, user_id: int) -> list[dict[str, object]]:
    """Return the scripts of a user in the form of the export file."""
    statement = select(*picked(SieveScript, {"name", "content", "active"})).where(
        col(SieveScript.user_id) == user_id
    )
    rows = await ctx.read(statement.order_by(col(SieveScript.name)))
    return [{"name": row.name, "content": row.content, "active": row.active} for row in rows]


@dataclass(frozen=True, slots=True)
class Checked:
    """The problems of a script, and what it would do with a message."""

    problems: Sequence[Problem] = ()
    failed: str | None = None  # with line and column
    actions: Sequence[str] = ()
    trace: Sequence[Traced] = ()
    requires: Sequence[str] = field(default_factory=list)


async def check(ctx: Context, content: str, user_id: int, message_id: int | None) -> Checked:
    """Compile a script of an account, and run it without effects on one of its messages.

    Nothing is stored: for the test `duplicate` the message is new. Raises NotFound if the account
    has no such message, and Forbidden if the viewer can't read it.
    """
    found = await asyncio.to_thread(_compiled, content)
    if found.problems or message_id is None:
        return found
    mine = (visible(ctx, Message), col(Message.id) == message_id)
    names = {"id", "envelope_from", "envelope_to", "from_address"}
    statement = select(*picked(Message, names)).where(*mine, col(Message.user_id) == user_id)
    row = next(iter(await ctx.read(statement)), None)
    stored = await message_content.one(ctx, message_id) if row else None
    if row is None or stored is None:
        raise NotFound(str(message_id), path=["message"])
    script = await _script(ctx, content, user_id)
    used = {user_id: await asyncio.to_thread(script_environment.uses, script)}
    around = (await script_environment.accounts(ctx.world, used))[user_id]
    circumstances = around.circumstances(script, ctx.world)
    sender = row.envelope_from if row.envelope_from is not None else row.from_address
    envelope = Envelope(sender or "", next(iter(row.envelope_to), ""))

    def run(source: mime.Source) -> Checked:
        letter = sieve.Letter(source, stored.structure)
        program = program_of(content)
        return _tried(found, lambda: sieve.run(program, letter, envelope, circumstances))

    return await stored.examine(run, apart=True)


async def _script(ctx: Context, content: str, user_id: int) -> Script:
    """Return the script with those of the user that it can include."""
    statement = select(*picked(SieveScript, {"name", "content"})).where(
        seen(ctx), col(SieveScript.user_id) == user_id
    )
    others: Mapping[str, str] = {}
    if "include" in content.lower():
        others = {row.name: row.content for row in await ctx.read(statement)}
    return Script(None, content, others)


def _compiled(content: str) -> Checked:
    try:
        return Checked(requires=sorted(required(content)))
    except SieveError as error:
        return Checked(error.problems)


def required(content: str) -> Collection[str]:
    """Return the extensions that a script requires. Raises SieveError if it does not compile."""
    return program_of(content).extensions - ALWAYS


ALWAYS = sieve.compiled("").extensions  # without `require`


def _tried(found: Checked, run: Callable[[], Plan]) -> Checked:
    try:
        plan = run()
    except RunError as error:
        problem = Problem(error.line, error.column, error.message)
        return replace(found, failed=str(error), problems=[problem], trace=error.trace)
    return replace(found, actions=said(plan), trace=plan.trace)


def said(plan: Plan) -> list[str]:
    """Describe the actions of a plan in order, in Sieve syntax."""
    return [_words(action) for action in plan.actions]


def _words(action: Action) -> str:
    match action:
        case Keep():
            implicit = ["(implicit)"] if action.implicit else []
            words = ["keep", *_flags(action.flags), *implicit]
        case FileInto():
            create = [":create"] if action.create else []
            use = [":specialuse", _quoted(action.special_use)] if action.special_use else []
            words = ["fileinto", *_flags(action.flags), *create, *use, _quoted(action.mailbox)]
        case Redirect():
            words = ["redirect", *([":copy"] if action.copy else []), _quoted(action.address)]
        case Reject():
            words = ["ereject" if action.extended else "reject", _quoted(action.reason)]
        case Vacation():
            reason = mime.shortened(action.reason, REASON)
            words = ["vacation", ":subject", _quoted(action.subject), _quoted(reason)]
        case Notify():
            words = ["notify", _quoted(action.method)]
        case Discard():
            words = ["discard"]
    return " ".join(words)


def _flags(flags: Sequence[str]) -> list[str]:
    return [":flags", _quoted(" ".join(flags))] if flags else []


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

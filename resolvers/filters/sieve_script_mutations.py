"""Storing, activating, renaming and deleting Sieve scripts of one or many accounts: all or none."""

import asyncio
import re
import unicodedata
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlmodel import col

from mail.filters.script_cache import program_of, redirects
from mail.filters.script_environment import PERSONAL
from mail.sieve import SieveError, limits
from models.errors import Conflict, Invalid, LimitReached, NotCompiled, NotFound, Several
from models.events import journal
from models.events.journal import ChangeKind, Entry
from models.filters.sieve_scripts import SieveScript
from models.store.columns import Picked, picked
from models.users.roles import AdminPermission, Role
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.context import Context, Needs
from resolvers.filters.sieve_scripts import required
from resolvers.users.selection import Users
from resolvers.users.user_locks import Held, changing

MOST = 25  # per account
NAME = 128  # characters (RFC 5804, section 1.6)
FACTS = ("name", "active", "size")
# Control characters and line ends (RFC 5804, section 1.6); "include" allows no slash.
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff/]")


@dataclass(frozen=True, slots=True)
class Put:
    """The IDs of the stored scripts, and the names of scripts they include that don't exist."""

    ids: Sequence[int]
    missing: Sequence[str] = ()


def checked_name(name: str, path: str = "name") -> str:
    """Return the name in its stored form (NFC). Raises InvalidInput."""
    name = unicodedata.normalize("NFC", name)
    if not 0 < len(name) <= NAME or _ODD.search(name) or not name.strip():
        text = f"a name has 1 to {NAME} characters, no control character and no slash"
        raise Invalid(text, constraint="pattern", path=[path])
    return name


async def put(ctx: Context, users: Users, name: str, content: str, *, activate: bool) -> Put:
    """Store a script for each account, in place of one with the same name.

    Raises NotCompiled for each mistake, InvalidInput, Forbidden, or LimitReached for too many
    scripts.
    """
    name = checked_name(name)
    size, requires, includes = await asyncio.to_thread(_compiled, content)
    async with _changing(ctx, users, "sieveScriptPut") as work:
        now = ctx.world.now()
        for user, rows in work.there.items():
            before = rows.get(name)
            active = activate or (before is not None and before.active)
            values: dict[str, Any] = {"content": content, "size": size, "requires": requires}
            if activate:
                work.deactivate(user, but=name)
            if before is None:
                if len(rows) >= MOST:
                    text = f"at most {MOST} scripts"
                    raise LimitReached(text, limit=MOST, used=len(rows), path=["name"])
                work.add(user, {**values, "name": name, "active": active, "created_at": now})
            elif before.content != content:
                fresh = {"last_error": None, "last_error_at": None, "updated_at": now}
                work.set(before, **values, **fresh, active=active)
            elif before.active != active:
                work.set(before, active=active, updated_at=now)
        missing = {
            one for rows in work.there.values() for one in includes if one not in {*rows, name}
        }
    return Put(work.named(name), sorted(missing))


def _compiled(content: str) -> tuple[int, list[str], list[str]]:
    """Return size in bytes, required extensions and names of included personal scripts.

    Raises NotCompiled or InvalidInput.
    """
    size = check_size(content)
    try:
        program = program_of(content)
        requires = sorted(required(content))
    except SieveError as error:
        raise not_compiled(error) from error
    return size, requires, [one.name for one in program.includes if one.location == PERSONAL]


def check_size(content: str) -> int:
    """Return the size of a script in bytes. Raises InvalidInput if it is too large."""
    size = len(content.encode(errors="surrogatepass"))
    if size > limits.SCRIPT:
        text = f"a script has at most {limits.SCRIPT} bytes"
        raise Invalid(text, constraint="max", path=["content"])
    return size


def not_compiled(error: SieveError) -> Several:
    """Return the errors of a script that does not compile."""
    return Several(
        [
            NotCompiled(one.message, line=one.line, column=one.column, path=["content"])
            for one in error.problems
        ]
    )


async def activate(ctx: Context, users: Users, name: str) -> list[int]:
    """Activate this script of each account.

    Returns the script IDs. Raises NotFound or Forbidden.
    """
    name = unicodedata.normalize("NFC", name)
    async with _changing(ctx, users, "sieveScriptActivate") as work:
        now = ctx.world.now()
        for user in work.there:
            row = work.find(user, name)
            work.deactivate(user, but=name)
            if not row.active:
                work.set(row, active=True, updated_at=now)
    return work.named(name)


async def deactivate(ctx: Context, users: Users) -> list[int]:
    """Deactivate the active script of each account. Returns the user IDs."""
    async with _changing(ctx, users, "sieveScriptDeactivate") as work:
        for user in work.there:
            work.deactivate(user)
    return list(work.there)


async def remove(
    ctx: Context, users: Users, names: Sequence[str], *, ignore_active: bool
) -> list[str]:
    """Delete these scripts of each account. Returns the names.

    Raises NotFound if an account lacks one, and Conflict if one is active, unless `deletes_active`.
    """
    wanted = list(dict.fromkeys(unicodedata.normalize("NFC", name) for name in names))
    if not 0 < len(wanted) <= MOST:
        text = f"1 to {MOST} names"
        raise Invalid(text, constraint="range", path=["names"])
    async with _changing(ctx, users, "sieveScriptDelete") as work:
        for user in work.there:
            for nth, name in enumerate(wanted):
                row = work.find(user, name, path="names", index=nth)
                if row.active and not ignore_active:
                    text = "it is the one that runs: deactivate it, or say ignoreActive"
                    raise Conflict(text, path=["names"], index=nth)
                work.gone.append(row)
    return wanted


async def rename(ctx: Context, users: Users, name: str, new: str) -> list[int]:
    """Rename a script of each account.

    Returns the script IDs. Raises NotFound, InvalidInput, or Conflict if the name is in use.
    """
    name, new = unicodedata.normalize("NFC", name), checked_name(new, "newName")
    async with _changing(ctx, users, "sieveScriptRename") as work:
        now = ctx.world.now()
        for user, rows in work.there.items():
            row = work.find(user, name)
            if new != name and new in rows:
                raise Conflict("there is a script of this name", path=["newName"])
            if new != name:
                work.set(row, name=new, updated_at=now)
    return work.named(new)


class _Work:
    """The scripts of locked accounts by user and name, and their changes."""

    def __init__(self, ctx: Context, there: dict[int, dict[str, Picked]]) -> None:
        self.ctx, self.there = ctx, there
        self.made: list[dict[str, Any]] = []
        self.changed: dict[int, tuple[Picked, dict[str, Any]]] = {}
        self.gone: list[Picked] = []

    def find(self, user: int, name: str, *, path: str = "name", index: int | None = None) -> Picked:
        """Return the script with this name. Raises NotFound."""
        row = self.there[user].get(name)
        if row is None:
            raise NotFound(name[:NAME], path=[path], index=index)
        return row

    def add(self, user: int, row: Mapping[str, Any]) -> None:
        """Add a new script."""
        key = self.ctx.world.key()
        empty = {"last_error": None, "last_error_at": None, "updated_at": row["created_at"]}
        self.made.append({**row, **empty, "id": key, "user_id": user})

    def set(self, row: Picked, **values: Any) -> None:
        """Set column values of a script."""
        self.changed[row.id] = row, {**self.changed.get(row.id, (row, {}))[1], **values}

    def deactivate(self, user: int, but: str = "") -> None:
        """Deactivate the scripts of a user, except the one with this name."""
        for row in self.there[user].values():
            if row.active and row.name != but:
                self.set(row, active=False, updated_at=self.ctx.world.now())

    def named(self, name: str) -> list[int]:
        """Return the IDs of the scripts that have this name after the changes, by account."""
        found = {row["user_id"]: row["id"] for row in self.made if row["name"] == name}
        for user, rows in self.there.items():
            for row in rows.values():
                after = self.changed.get(row.id, (row, {}))[1]
                if after.get("name", row.name) == name:
                    found[user] = row.id
        return [found[user] for user in self.there if user in found]

    @property
    def touched(self) -> dict[int, list[int]]:
        """The IDs of new, changed and deleted scripts by user."""
        found: dict[int, list[int]] = {}
        pairs = [(row["user_id"], row["id"]) for row in self.made]
        pairs += [(row.user_id, row.id) for row, _ in self.changed.values()]
        pairs += [(row.user_id, row.id) for row in self.gone]
        for user, key in pairs:
            found.setdefault(user, []).append(key)
        return found


@asynccontextmanager
async def _changing(ctx: Context, users: Users, mutation: str) -> AsyncGenerator[_Work]:
    """Lock the accounts, and on leaving write, record and log the changes of their scripts."""
    async with changing(ctx, users, mutation) as held:
        _permitted(ctx, held)
        work = _Work(ctx, await _there(held))
        yield work
        await _write(held, work)
        entries = {
            user: [Entry(ChangeKind.SIEVE_CHANGED, keys, {}, ctx.session_id)]
            for user, keys in work.touched.items()
        }
        await journal.record_all(held.session, entries, at=ctx.world.now())
        await _log(ctx, held, work, mutation)
        await security_log.note_all(ctx, held.session, await asyncio.to_thread(_forwards, work))


def _forwards(work: _Work) -> list[Event]:
    """Return a security event for each new redirect, since an attacker often adds forwards.

    A redirect is new if its script is new, changed or activated.
    """
    pairs = [(row["user_id"], _sends(row["content"])) for row in work.made]
    for row, values in work.changed.values():
        known = set[str]() if values.get("active") and not row.active else _sends(row.content)
        pairs.append((row.user_id, _sends(values.get("content", row.content)) - known))
    return [Event("sieve forward", user, target=to) for user, all_ in pairs for to in sorted(all_)]


def _sends(content: str) -> set[str]:
    try:
        return redirects(program_of(content))
    except SieveError:  # an earlier version accepted this script
        return set()


def _permitted(ctx: Context, held: Held) -> None:
    """Raise Forbidden if a DOMAIN_ADMIN lacks the permission FILTERS for scripts of others."""
    if any(row.id != ctx.viewer.user_id for row in held.rows):
        needs = Needs(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.FILTERS)
        ctx.viewer.require(needs)


async def _there(held: Held) -> dict[int, dict[str, Picked]]:
    keys = [row.id for row in held.rows]
    statement = select(*picked(SieveScript)).where(col(SieveScript.user_id).in_(keys))
    found: dict[int, dict[str, Picked]] = {key: {} for key in keys}
    for row in await (await held.session.connection()).execute(statement):
        found[row.user_id][row.name] = row
    return found


async def _write(held: Held, work: _Work) -> None:
    """Write the changes.

    Scripts are deactivated first, since an account has at most one active script.
    """
    connection = await held.session.connection()
    if work.gone:
        gone = delete(SieveScript).where(col(SieveScript.id).in_([row.id for row in work.gone]))
        await connection.execute(gone)
    alike: dict[str, tuple[list[int], dict[str, Any]]] = {}
    ordered = sorted(work.changed.values(), key=lambda pair: bool(pair[1].get("active")))
    for row, values in ordered:
        alike.setdefault(repr(values), ([], values))[0].append(row.id)
    for keys, values in alike.values():
        this = update(SieveScript).where(col(SieveScript.id).in_(keys))
        await connection.execute(this.values(values))
    if work.made:
        await connection.execute(insert(SieveScript), work.made)


async def _log(ctx: Context, held: Held, work: _Work, mutation: str) -> None:
    """Log changes of other users' scripts for administrators.

    Of the content only the size is logged.
    """
    domains = {row.id: row.domain_id for row in held.rows}
    made = [(row["user_id"], row["id"], None, _facts(row)) for row in work.made]
    changed = [
        (row.user_id, row.id, _facts(row._asdict()), _facts({**row._asdict(), **values}))
        for row, values in work.changed.values()
    ]
    gone = [(row.user_id, row.id, _facts(row._asdict()), None) for row in work.gone]
    done = [
        Done(mutation, "SieveScript", key, domains[user], before, after)
        for user, key, before, after in [*made, *changed, *gone]
        if user != ctx.viewer.user_id
    ]
    await admin_log.note(ctx, held.session, *done)


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in FACTS}

"""Storing, activating, renaming and deleting Sieve scripts of one or many accounts: all or none."""

import asyncio
import re
import unicodedata
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlmodel import col

from mail.filters.script_cache import compile_script_cached, redirect_addresses
from mail.filters.script_environment import PERSONAL_LOCATION
from mail.sieve import SieveError, limits
from models.auth.security_log import SecurityEventAction
from models.errors import (
    Conflict,
    InvalidInput,
    LimitReached,
    MultipleErrors,
    NotFound,
    ScriptError,
)
from models.events import journal
from models.events.event_types import EventType, ids_by_event_type
from models.events.journal import JournalEntry
from models.filters.sieve_scripts import SieveScript
from models.store.columns import ColumnRow, select_columns
from models.users.roles import AdminPermission, Role
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.filters.sieve_scripts import required_extensions
from resolvers.users.selection import UserSelector
from resolvers.users.user_locks import LockedUsers, lock_users_and_store_changes
from resolvers.viewer import GuardRule

MAX_SCRIPTS = 25  # per account
MAX_NAME_LENGTH = 128  # characters (RFC 5804, section 1.6)
LOGGED_COLUMNS = ("name", "active", "size")
# Control characters and line ends (RFC 5804, section 1.6); "include" allows no slash.
_REFUSED_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff/]")


@dataclass(frozen=True, slots=True)
class ScriptSelector:
    """Selects a script by its ID, or the script with a name of each account."""

    name: str | None = None
    id: int | None = None

    @property
    def stored_name(self) -> str | None:
        """The name in its stored form (NFC)."""
        return None if self.name is None else unicodedata.normalize("NFC", self.name)

    def find(self, scripts_by_name: Mapping[str, ColumnRow]) -> ColumnRow | None:
        """Return the selected one of these scripts; None if it is not among them."""
        if self.id is None:
            return scripts_by_name.get(self.stored_name or "")
        return next((row for row in scripts_by_name.values() if row.id == self.id), None)

    def __str__(self) -> str:
        return str(self.id) if self.name is None else self.name[:MAX_NAME_LENGTH]


@dataclass(frozen=True, slots=True)
class StoredScripts:
    """The IDs of the stored scripts, and the names of scripts they include that don't exist."""

    script_ids: Sequence[int]
    missing_includes: Sequence[str] = ()


def validate_script_name(name: str, input_field: str = "name") -> str:
    """Return the name in its stored form (NFC). Raises InvalidInput."""
    name = unicodedata.normalize("NFC", name)
    if not 0 < len(name) <= MAX_NAME_LENGTH or _REFUSED_CHARACTERS.search(name) or not name.strip():
        text = (
            f"A name has from 1 to {MAX_NAME_LENGTH} characters, without control "
            "characters and slashes."
        )
        raise InvalidInput(text, constraint=ValidationConstraint.PATTERN, path=[input_field])
    return name


async def put_script(
    ctx: Context, users: UserSelector, name: str, script_text: str, *, activates: bool
) -> StoredScripts:
    """Store a script for each account, in place of one with the same name.

    Raises MultipleErrors for each mistake, InvalidInput, Forbidden, or LimitReached for too many
    scripts.
    """
    name = validate_script_name(name)
    compiled = await asyncio.to_thread(_compile_script, script_text)
    async with _lock_scripts_and_store_changes(ctx, users, "sieveScriptSet") as changes:
        now = ctx.environment.now()
        for user, rows in changes.scripts_by_user.items():
            before = rows.get(name)
            active = activates or (before is not None and before.active)
            values: dict[str, Any] = {
                "content": script_text,
                "size": compiled.size,
                "requires": compiled.required_extensions,
            }
            if activates:
                changes.deactivate_scripts(user, except_name=name)
            if before is None:
                if len(rows) >= MAX_SCRIPTS:
                    text = f"A user has at most {MAX_SCRIPTS} scripts."
                    raise LimitReached(text, limit=MAX_SCRIPTS, used=len(rows), path=["name"])
                changes.add_script(
                    user, {**values, "name": name, "active": active, "created_at": now}
                )
            elif before.content != script_text:
                reset_values = {"last_error": None, "last_error_at": None, "updated_at": now}
                changes.set_values(before, **values, **reset_values, active=active)
            elif before.active != active:
                changes.set_values(before, active=active, updated_at=now)
        missing = {
            included_name
            for rows in changes.scripts_by_user.values()
            for included_name in compiled.included_names
            if included_name not in {*rows, name}
        }
    return StoredScripts(changes.script_ids_with_name_after_changes(name), sorted(missing))


@dataclass(frozen=True, slots=True)
class CompiledScript:
    """What is stored and checked of a script that compiles."""

    size: int  # bytes
    required_extensions: list[str]
    included_names: list[str]  # of personal scripts


def _compile_script(script_text: str) -> CompiledScript:
    """Compile a script.

    Raises MultipleErrors or InvalidInput.
    """
    size = validated_script_size(script_text)
    try:
        program = compile_script_cached(script_text)
        requires = sorted(required_extensions(script_text))
    except SieveError as error:
        raise not_compiled_error(error) from error
    return CompiledScript(
        size,
        requires,
        [include.name for include in program.includes if include.location == PERSONAL_LOCATION],
    )


def validated_script_size(script_text: str) -> int:
    """Return the size of a script in bytes. Raises InvalidInput if it is too large."""
    size = len(script_text.encode(errors="surrogatepass"))
    if size > limits.MAX_SCRIPT_BYTES:
        text = f"A script has at most {limits.MAX_SCRIPT_BYTES} bytes."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["content"])
    return size


def not_compiled_error(error: SieveError) -> MultipleErrors:
    """Return the errors of a script that does not compile."""
    return MultipleErrors(
        [
            ScriptError(problem.message, line=problem.line, column=problem.column, path=["content"])
            for problem in error.problems
        ]
    )


async def activate_script(ctx: Context, users: UserSelector, selector: ScriptSelector) -> list[int]:
    """Activate this script of each account.

    Returns the script IDs. Raises NotFound or Forbidden.
    """
    script_ids: list[int] = []
    async with _lock_scripts_and_store_changes(ctx, users, "sieveScriptActivate") as changes:
        now = ctx.environment.now()
        for user in changes.scripts_by_user:
            row = changes.require_script(user, selector)
            changes.deactivate_scripts(user, except_name=row.name)
            if not row.active:
                changes.set_values(row, active=True, updated_at=now)
            script_ids.append(row.id)
    return script_ids


async def deactivate_scripts(ctx: Context, users: UserSelector) -> list[int]:
    """Deactivate the active script of each account. Returns the user IDs."""
    async with _lock_scripts_and_store_changes(ctx, users, "sieveScriptDeactivate") as work:
        for user in work.scripts_by_user:
            work.deactivate_scripts(user)
    return list(work.scripts_by_user)


async def delete_scripts(
    ctx: Context,
    users: UserSelector,
    selectors: Sequence[ScriptSelector],
    *,
    deletes_active: bool,
) -> list[int]:
    """Delete the selected scripts. A name selects the script of each account. Returns the IDs.

    Raises NotFound if a script does not exist, and Conflict if one is active, unless
    `deletes_active`.
    """
    if not 0 < len(selectors) <= MAX_SCRIPTS:
        text = f"From 1 to {MAX_SCRIPTS} scripts are required."
        raise InvalidInput(text, constraint=ValidationConstraint.RANGE, path=["sieveScripts"])
    async with _lock_scripts_and_store_changes(ctx, users, "sieveScriptDelete") as changes:
        selected: dict[int, ColumnRow] = {}
        for nth, selector in enumerate(selectors):
            for row in changes.require_scripts(selector, ["sieveScripts", str(nth)]):
                if row.active and not deletes_active:
                    text = "The script is active: deactivate it, or set `ignoreActive`."
                    raise Conflict(text, path=["sieveScripts", str(nth)])
                selected[row.id] = row
        changes.deleted_rows.extend(selected.values())
    return list(selected)


async def rename_script(
    ctx: Context, users: UserSelector, selector: ScriptSelector, new_name: str
) -> list[int]:
    """Rename a script of each account.

    Returns the script IDs. Raises NotFound, InvalidInput, or Conflict if the name is in use.
    """
    new_name = validate_script_name(new_name, "newName")
    async with _lock_scripts_and_store_changes(ctx, users, "sieveScriptRename") as changes:
        now = ctx.environment.now()
        for user, rows in changes.scripts_by_user.items():
            row = changes.require_script(user, selector)
            if new_name != row.name and new_name in rows:
                raise Conflict("The user already has a script with this name.", path=["newName"])
            if new_name != row.name:
                changes.set_values(row, name=new_name, updated_at=now)
    return changes.script_ids_with_name_after_changes(new_name)


class _ScriptChanges:
    """The scripts of locked accounts by user and name, and their changes."""

    def __init__(self, ctx: Context, scripts_by_user: dict[int, dict[str, ColumnRow]]) -> None:
        self.ctx, self.scripts_by_user = ctx, scripts_by_user
        self.new_rows: list[dict[str, Any]] = []
        self.changes_by_script: dict[int, tuple[ColumnRow, dict[str, Any]]] = {}
        self.deleted_rows: list[ColumnRow] = []

    def require_script(
        self, user_id: int, selector: ScriptSelector, path: Sequence[str] = ("sieveScript",)
    ) -> ColumnRow:
        """Return the selected script of a user. Raises NotFound."""
        row = selector.find(self.scripts_by_user[user_id])
        if row is None:
            part = "id" if selector.name is None else "name"
            raise NotFound(str(selector), path=[*path, part])
        return row

    def require_scripts(self, selector: ScriptSelector, path: Sequence[str]) -> list[ColumnRow]:
        """Return the script with this ID, or with this name of each user. Raises NotFound."""
        if selector.name is not None:
            return [self.require_script(user, selector, path) for user in self.scripts_by_user]
        scripts_found = [selector.find(scripts) for scripts in self.scripts_by_user.values()]
        rows = [row for row in scripts_found if row]
        if not rows:
            raise NotFound(str(selector), path=[*path, "id"])
        return rows

    def add_script(self, user_id: int, script_row: Mapping[str, Any]) -> None:
        """Add a new script."""
        key = self.ctx.environment.new_id()
        empty = {"last_error": None, "last_error_at": None, "updated_at": script_row["created_at"]}
        self.new_rows.append({**script_row, **empty, "id": key, "user_id": user_id})

    def set_values(self, script_row: ColumnRow, **values: Any) -> None:
        """Set column values of a script."""
        self.changes_by_script[script_row.id] = (
            script_row,
            {**self.changes_by_script.get(script_row.id, (script_row, {}))[1], **values},
        )

    def deactivate_scripts(self, user_id: int, except_name: str = "") -> None:
        """Deactivate the scripts of a user, except the one with this name."""
        for row in self.scripts_by_user[user_id].values():
            if row.active and row.name != except_name:
                self.set_values(row, active=False, updated_at=self.ctx.environment.now())

    def script_ids_with_name_after_changes(self, name: str) -> list[int]:
        """Return the IDs of the scripts that have this name after the changes, by account."""
        ids_by_user = {row["user_id"]: row["id"] for row in self.new_rows if row["name"] == name}
        for user, rows in self.scripts_by_user.items():
            for row in rows.values():
                after = self.changes_by_script.get(row.id, (row, {}))[1]
                if after.get("name", row.name) == name:
                    ids_by_user[user] = row.id
        return [ids_by_user[user] for user in self.scripts_by_user if user in ids_by_user]

    @property
    def event_types_by_user(self) -> dict[int, dict[int, EventType]]:
        """The types of the events of new, changed and deleted scripts by user and script ID."""
        types_by_user: defaultdict[int, dict[int, EventType]] = defaultdict(dict)
        for new_row in self.new_rows:
            types_by_user[new_row["user_id"]][new_row["id"]] = EventType.SIEVE_CREATED
        for row, _ in self.changes_by_script.values():
            types_by_user[row.user_id][row.id] = EventType.SIEVE_UPDATED
        for row in self.deleted_rows:
            types_by_user[row.user_id][row.id] = EventType.SIEVE_DELETED
        return types_by_user


@asynccontextmanager
async def _lock_scripts_and_store_changes(
    ctx: Context, users: UserSelector, mutation_name: str
) -> AsyncGenerator[_ScriptChanges]:
    """Lock the accounts, and on leaving write, record and log the changes of their scripts."""
    async with lock_users_and_store_changes(ctx, users, mutation_name) as locked_users:
        _require_permission_for_others_scripts(ctx, locked_users)
        changes = _ScriptChanges(ctx, await _load_scripts_by_user(locked_users))
        yield changes
        await _write_script_changes(locked_users, changes)
        entries = {
            user: [
                JournalEntry(event_type, script_ids, {}, ctx.session_id)
                for event_type, script_ids in ids_by_event_type(types_by_id)
            ]
            for user, types_by_id in changes.event_types_by_user.items()
        }
        await journal.record_entries_in_streams_or_raise(
            locked_users.session, entries, at=ctx.environment.now()
        )
        await _write_audit_log_of_others_scripts(ctx, locked_users, changes, mutation_name)
        await security_log.insert_security_events_and_queue_notices(
            ctx, locked_users.session, await asyncio.to_thread(_new_redirect_events, changes)
        )


def _new_redirect_events(changes: _ScriptChanges) -> list[NewSecurityEvent]:
    """Return a security event for each new redirect, since an attacker often adds forwards.

    A redirect is new if its script is new, changed or activated.
    """
    pairs = [(row["user_id"], _redirect_addresses(row["content"])) for row in changes.new_rows]
    for row, values in changes.changes_by_script.values():
        old_addresses = (
            set[str]()
            if values.get("active") and not row.active
            else _redirect_addresses(row.content)
        )
        pairs.append(
            (row.user_id, _redirect_addresses(values.get("content", row.content)) - old_addresses)
        )
    return [
        NewSecurityEvent(SecurityEventAction.SIEVE_FORWARDING_ADDED, user, target=target)
        for user, all_ in pairs
        for target in sorted(all_)
    ]


def _redirect_addresses(script_text: str) -> set[str]:
    try:
        return redirect_addresses(compile_script_cached(script_text))
    except SieveError:  # an earlier version accepted this script
        return set()


def _require_permission_for_others_scripts(ctx: Context, locked: LockedUsers) -> None:
    """Raise Forbidden if a DOMAIN_ADMIN lacks the permission FILTERS for scripts of others."""
    if any(row.id != ctx.viewer.user_id for row in locked.rows):
        needs = GuardRule(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.FILTERS)
        ctx.viewer.require(needs)


async def _load_scripts_by_user(locked: LockedUsers) -> dict[int, dict[str, ColumnRow]]:
    keys = [row.id for row in locked.rows]
    statement = select(*select_columns(SieveScript)).where(col(SieveScript.user_id).in_(keys))
    scripts_by_user: dict[int, dict[str, ColumnRow]] = {key: {} for key in keys}
    for row in await (await locked.session.connection()).execute(statement):
        scripts_by_user[row.user_id][row.name] = row
    return scripts_by_user


async def _write_script_changes(locked: LockedUsers, changes: _ScriptChanges) -> None:
    """Write the changes.

    Scripts are deactivated first, since an account has at most one active script.
    """
    connection = await locked.session.connection()
    if changes.deleted_rows:
        delete_statement = delete(SieveScript).where(
            col(SieveScript.id).in_([row.id for row in changes.deleted_rows])
        )
        await connection.execute(delete_statement)
    ids_by_values: dict[str, tuple[list[int], dict[str, Any]]] = {}
    ordered = sorted(
        changes.changes_by_script.values(), key=lambda pair: bool(pair[1].get("active"))
    )
    for row, values in ordered:
        ids_by_values.setdefault(repr(values), ([], values))[0].append(row.id)
    for keys, values in ids_by_values.values():
        update_statement = update(SieveScript).where(col(SieveScript.id).in_(keys))
        await connection.execute(update_statement.values(values))
    if changes.new_rows:
        await connection.execute(insert(SieveScript), changes.new_rows)


async def _write_audit_log_of_others_scripts(
    ctx: Context, locked: LockedUsers, changes: _ScriptChanges, mutation_name: str
) -> None:
    """Log changes of other users' scripts for administrators.

    Of the content only the size is logged.
    """
    domains = {row.id: row.domain_id for row in locked.rows}
    created = [(row["user_id"], row["id"], None, _logged_values(row)) for row in changes.new_rows]
    changed = [
        (
            row.user_id,
            row.id,
            _logged_values(row._asdict()),
            _logged_values({**row._asdict(), **values}),
        )
        for row, values in changes.changes_by_script.values()
    ]
    deleted = [
        (row.user_id, row.id, _logged_values(row._asdict()), None) for row in changes.deleted_rows
    ]
    entries = [
        NewAuditLogEntry(mutation_name, "SieveScript", script_id, domains[user], before, after)
        for user, script_id, before, after in [*created, *changed, *deleted]
        if user != ctx.viewer.user_id
    ]
    await audit_log.insert_audit_log_entries(ctx, locked.session, *entries)


def _logged_values(script_row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: script_row[name] for name in LOGGED_COLUMNS}

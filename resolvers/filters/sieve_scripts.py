"""Sieve scripts: loading them, and a dry run on a message."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlmodel import col

from mail import mime, sieve
from mail.filters import script_environment
from mail.filters.script_cache import compile_script_cached
from mail.filters.script_environment import UserScript
from mail.sieve import (
    Action,
    Discard,
    FileInto,
    Keep,
    MailNotification,
    Redirect,
    Reject,
    ScriptProblem,
    ScriptTraceStep,
    SieveEnvelope,
    SieveError,
    SievePlan,
    SieveRunError,
    VacationReply,
)
from models.errors import NotFound
from models.filters.sieve_scripts import SieveScript
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page
from models.users.roles import AdminPermission, Scope, expand_scopes
from resolvers.access import is_own_or_shared
from resolvers.context import Context
from resolvers.filters.dry_run_messages import (
    DryRunMessage,
    StoredTestMessage,
    load_and_examine_message,
)
from resolvers.list_orders import OwnerPageKey, SortColumn, list_orders, read_owner_pages
from resolvers.pagination import read_by_keys
from resolvers.users import managed_objects


class SieveScriptOrder(StrEnum):
    """The order of a list of Sieve scripts; ties by id."""

    NAME_ASC = "NAME_ASC"
    NAME_DESC = "NAME_DESC"


LIST_ORDERS = list_orders(SieveScriptOrder, {"NAME": SortColumn("name", str)})
READ_SCOPES = frozenset({Scope.READ, Scope.SIEVE})  # each of them allows reading scripts
MAX_REASON_LENGTH = 200  # characters of a vacation reason in a description


def is_visible_script_sql(ctx: Context) -> ColumnElement[bool]:
    """Build the condition that the viewer can see a script: their own, and those they manage."""
    return managed_objects.is_visible_sql(ctx, SieveScript, AdminPermission.FILTERS)


async def load_visible_by_ids(ctx: Context, script_ids: list[int]) -> list[ColumnRow | None]:
    """Load these scripts, in this order. None if viewer or credential can't see one."""
    if not READ_SCOPES & expand_scopes(ctx.viewer.scopes):
        return [None] * len(script_ids)
    return await read_by_keys(
        ctx, select(*select_columns(SieveScript)).where(is_visible_script_sql(ctx)), _ID, script_ids
    )


_ID = col(SieveScript.id)


async def load_visible_scripts_by_names(
    ctx: Context, user_ids_and_names: list[tuple[int, str]]
) -> list[ColumnRow | None]:
    """Load scripts by user ID and name, in this order, with one statement."""
    script_conditions = [
        and_(col(SieveScript.user_id) == user, col(SieveScript.name) == name)
        for user, name in dict.fromkeys(user_ids_and_names)
    ]
    statement = select(*select_columns(SieveScript)).where(
        is_visible_script_sql(ctx), or_(*script_conditions)
    )
    rows_by_name = {(row.user_id, row.name): row for row in await ctx.read(statement)}
    return [rows_by_name.get(key) for key in user_ids_and_names]


async def load_visible_script_pages(
    ctx: Context, page_keys: list[OwnerPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the scripts of users that the viewer can see."""
    return await read_owner_pages(ctx, SieveScript, page_keys, _select_visible_scripts_of_user)


def _select_visible_scripts_of_user(
    ctx: Context, user_id: int, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(SieveScript, columns)).where(
        col(SieveScript.user_id) == user_id, is_visible_script_sql(ctx)
    )


async def count_visible_scripts(ctx: Context, page_keys: list[OwnerPageKey]) -> list[int]:
    """Count the scripts of each list, in the order of the keys."""
    statement = (
        select(col(SieveScript.user_id), func.count().label("many"))
        .where(
            is_visible_script_sql(ctx),
            col(SieveScript.user_id).in_({key.owner_id for key in page_keys}),
        )
        .group_by(col(SieveScript.user_id))
    )
    count_by_user = {row.user_id: row.many for row in await ctx.read(statement)}
    return [count_by_user.get(key.owner_id, 0) for key in page_keys]


async def has_visible_active_script(ctx: Context, user_id: int) -> bool:
    """True if the user has an active script that the viewer can see."""
    statement = select(_ID).where(is_visible_script_sql(ctx), col(SieveScript.user_id) == user_id)
    return bool(await ctx.read(statement.where(col(SieveScript.active))))


async def export_scripts(ctx: Context, user_id: int) -> list[dict[str, object]]:
    """Return the scripts of a user in the form of the export file."""
    statement = select(*select_columns(SieveScript, {"name", "content", "active"})).where(
        col(SieveScript.user_id) == user_id
    )
    rows = await ctx.read(statement.order_by(col(SieveScript.name)))
    return [{"name": row.name, "content": row.content, "active": row.active} for row in rows]


@dataclass(frozen=True, slots=True)
class ScriptCheck:
    """The problems of a script, and what it would do with a message."""

    problems: Sequence[ScriptProblem] = ()
    runtime_error: str | None = None  # with line and column
    action_texts: Sequence[str] = ()
    trace_steps: Sequence[ScriptTraceStep] = ()
    requires: Sequence[str] = field(default_factory=list)


async def compile_and_dry_run_script(
    ctx: Context, script_text: str, user_id: int, message: DryRunMessage | None
) -> ScriptCheck:
    """Compile a script of an account, and run it without effects on a message.

    Nothing is stored: for the test `duplicate` the message is new. The envelope of a raw message
    is empty. Raises NotFound if the account has no such stored message, Forbidden if the viewer
    can't read it, InvalidInput and LimitReached for raw text.
    """
    result = await asyncio.to_thread(_compile_check, script_text)
    if result.problems or message is None:
        return result
    envelope = SieveEnvelope("", "")
    if isinstance(message, StoredTestMessage):
        envelope = await _envelope_of_stored_message(ctx, user_id, message.message_id)
    script = await _with_includable_scripts_of_user(ctx, script_text, user_id)
    used = {user_id: await asyncio.to_thread(script_environment.used_extensions, script)}
    around = (await script_environment.load_script_accounts(ctx.environment, used))[user_id]
    circumstances = around.sieve_environment(script, ctx.environment)

    def run_script(parsed_message: sieve.ParsedSieveMessage) -> ScriptCheck:
        program = compile_script_cached(script_text)
        return _with_run_result(
            result, lambda: sieve.run_script(program, parsed_message, envelope, circumstances)
        )

    return await load_and_examine_message(ctx, message, run_script)


async def _envelope_of_stored_message(ctx: Context, user_id: int, message_id: int) -> SieveEnvelope:
    names = {"id", "envelope_from", "envelope_to", "from_address"}
    statement = select(*select_columns(Message, names)).where(
        is_own_or_shared(ctx, Message),
        col(Message.id) == message_id,
        col(Message.user_id) == user_id,
    )
    row = next(iter(await ctx.read(statement)), None)
    if row is None:
        raise NotFound(str(message_id), path=["message", "stored"])
    sender = row.envelope_from if row.envelope_from is not None else row.from_address
    return SieveEnvelope(sender or "", next(iter(row.envelope_to), ""))


async def _with_includable_scripts_of_user(
    ctx: Context, script_text: str, user_id: int
) -> UserScript:
    """Return the script with those of the user that it can include."""
    statement = select(*select_columns(SieveScript, {"name", "content"})).where(
        is_visible_script_sql(ctx), col(SieveScript.user_id) == user_id
    )
    script_texts: Mapping[str, str] = {}
    if "include" in script_text.lower():
        script_texts = {row.name: row.content for row in await ctx.read(statement)}
    return UserScript(None, script_text, script_texts)


def _compile_check(script_text: str) -> ScriptCheck:
    try:
        return ScriptCheck(requires=sorted(required_extensions(script_text)))
    except SieveError as error:
        return ScriptCheck(error.problems)


def required_extensions(script_text: str) -> Collection[str]:
    """Return the extensions that a script requires. Raises SieveError if it does not compile."""
    return compile_script_cached(script_text).extensions - ALWAYS_AVAILABLE_EXTENSIONS


ALWAYS_AVAILABLE_EXTENSIONS = sieve.compile_script("").extensions  # without `require`


def _with_run_result(compiled_check: ScriptCheck, run: Callable[[], SievePlan]) -> ScriptCheck:
    try:
        plan = run()
    except SieveRunError as error:
        problem = ScriptProblem(error.line, error.column, error.message)
        return replace(
            compiled_check, runtime_error=str(error), problems=[problem], trace_steps=error.trace
        )
    return replace(compiled_check, action_texts=describe_plan(plan), trace_steps=plan.trace)


def describe_plan(plan: SievePlan) -> list[str]:
    """Describe the actions of a plan in order, in Sieve syntax."""
    return [_describe_action(action) for action in plan.actions]


def _describe_action(action: Action) -> str:
    match action:
        case Keep():
            implicit = ["(implicit)"] if action.is_implicit else []
            parts = ["keep", *_flags_argument(action.flags), *implicit]
        case FileInto():
            create = [":create"] if action.create_mailbox else []
            use = [":specialuse", _sieve_string(action.special_use)] if action.special_use else []
            parts = [
                "fileinto",
                *_flags_argument(action.flags),
                *create,
                *use,
                _sieve_string(action.mailbox),
            ]
        case Redirect():
            parts = [
                "redirect",
                *([":copy"] if action.keeps_implicit_keep else []),
                _sieve_string(action.address),
            ]
        case Reject():
            parts = ["ereject" if action.is_ereject else "reject", _sieve_string(action.reason)]
        case VacationReply():
            reason = mime.shorten_text_at_word_end(action.reason, MAX_REASON_LENGTH)
            parts = ["vacation", ":subject", _sieve_string(action.subject), _sieve_string(reason)]
        case MailNotification():
            parts = ["notify", _sieve_string(action.method)]
        case Discard():
            parts = ["discard"]
    return " ".join(parts)


def _flags_argument(flags: Sequence[str]) -> list[str]:
    return [":flags", _sieve_string(" ".join(flags))] if flags else []


def _sieve_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

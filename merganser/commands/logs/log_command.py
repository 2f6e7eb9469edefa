"""Implementation of `merganser log`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.errors import EXIT_USAGE, CommandError, user_not_found_error
from merganser.server.environment_factory import root_context
from merganser.settings.settings import Settings
from merganser.settings.units import parse_duration_if_text
from models.logs.entries import (
    MAX_QUERY_LENGTH,
    MAX_QUERY_WORDS,
    LogComponent,
    LogConditions,
    LogLevel,
    text_words,
)
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from resolvers.context import Context
from resolvers.logs import loaders
from resolvers.logs.loaders import LogEntryRecord, LogOrder
from resolvers.users.loaders import find_user_by_name

PAGE_SIZE = 250


def print_log(
    component: list[str] | None,
    level: str,
    since: str | None,
    before: str | None,
    user: str | None,
    query: str | None,
    queue_id: str | None,
    message_id: str | None,
    limit: int,
    follow: bool,
    as_json: bool,
) -> None:
    """Print the newest entries, the oldest of them first, and with --follow also new ones."""
    conditions = LogConditions(
        components=_components_from_names_or_raise(component) if component else None,
        min_level=_level_from_name_or_raise(level),
        since=_parse_date_or_duration_ago("--since", since),
        before=_parse_date_or_duration_ago("--before", before),
        words=_query_words_or_fail_command(query),
        queue_id=queue_id,
        message_id=f"<{message_id.strip('<>')}>" if message_id else None,
    )

    async def print_entries(environment: Environment, _settings: Settings) -> None:
        ctx = root_context(environment)
        user_id = await _require_user_id(ctx, user) if user is not None else None
        selected = replace(conditions, user_id=user_id)
        newest = await _read_newest(ctx, selected, limit)
        _print_records(newest[::-1], as_json=as_json)
        if follow:
            last_id = newest[0].id if newest else None
            async for record in loaders.follow_visible_log_entries(ctx, selected, last_id):
                _print_records([record], as_json=as_json)

    run_in_environment(print_entries)


async def _require_user_id(ctx: Context, name: str) -> int:
    """Return the id of a user. Raises CommandError if there is no such user."""
    row = await find_user_by_name(ctx, name)
    if row is None:
        raise user_not_found_error(name)
    return int(row.id)


async def _read_newest(ctx: Context, conditions: LogConditions, limit: int) -> list[LogEntryRecord]:
    """Read the newest entries, the newest first."""
    newest: list[LogEntryRecord] = []
    has_more = True
    while has_more and len(newest) < limit:
        cursor = newest[-1].cursor("") if newest else None
        request = PageRequest("", min(PAGE_SIZE, limit - len(newest)), cursor)
        page = await loaders.read_visible_log_page(ctx, conditions, request, LogOrder.AT_DESC)
        newest += page.rows
        has_more = page.has_next
    return newest


def _print_records(records: Sequence[LogEntryRecord], *, as_json: bool) -> None:
    for record in records:
        typer.echo(json.dumps(_json_from_record(record)) if as_json else _line_from_record(record))


def _json_from_record(record: LogEntryRecord) -> dict[str, Any]:
    return {
        "at": record.at.isoformat(),
        "component": record.component,
        "level": record.level,
        "program": record.program,
        "message": record.message,
        "user": record.user_id,
        "queueId": record.queue_id,
        "messageIdHeader": record.message_id,
        "correlationId": record.correlation_id,
        "fields": record.fields,
    }


def _line_from_record(record: LogEntryRecord) -> str:
    at = record.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    queue = f" [{record.queue_id}]" if record.queue_id else ""
    return f"{at} {record.component:10} {record.level:7} {record.program}{queue}: {record.message}"


def _components_from_names_or_raise(names: Sequence[str]) -> tuple[LogComponent, ...]:
    for name in names:
        if name.upper() not in LogComponent.__members__:
            raise CommandError(
                f"--component: Must be one of {', '.join(LogComponent)}.", exit_code=EXIT_USAGE
            )
    return tuple(sorted({LogComponent(name.upper()) for name in names}))


def _level_from_name_or_raise(name: str) -> LogLevel:
    if name.upper() not in LogLevel.__members__:
        raise CommandError(f"--level: Must be one of {', '.join(LogLevel)}.", exit_code=EXIT_USAGE)
    return LogLevel(name.upper())


def _query_words_or_fail_command(text: str | None) -> tuple[str, ...]:
    """Return the words of --query. Raises CommandError if there are none or too many."""
    words = tuple(dict.fromkeys(text_words(text[: MAX_QUERY_LENGTH + 1]))) if text else ()
    if text is not None and not (
        0 < len(words) <= MAX_QUERY_WORDS and len(text) <= MAX_QUERY_LENGTH
    ):
        raise CommandError(
            f"--query: Must have 1 to {MAX_QUERY_WORDS} words and at most {MAX_QUERY_LENGTH} "
            "characters.",
            exit_code=EXIT_USAGE,
        )
    return words


def _parse_date_or_duration_ago(option: str, text: str | None) -> datetime | None:
    """Parse a date, or a duration before now. Raises CommandError if it is invalid."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        return moment if moment.tzinfo else moment.astimezone()
    try:
        age = parse_duration_if_text(text)
    except ValueError:
        age = None
    if not isinstance(age, timedelta):
        raise CommandError(
            f'{option}: Must be a duration such as "2 hours", or a date such as 2031-12-24.',
            exit_code=EXIT_USAGE,
        )
    return datetime.now(UTC) - age

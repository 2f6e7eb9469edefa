"""Import of filters from a Sieve script: all or none."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mail.filters import sieve_import
from mail.filters.sieve_import import ImportedFilter, SieveImport
from mail.filters.sieve_to_actions import MailboxName
from mail.sieve import ScriptProblem, SieveError, limits
from models.errors import InvalidInput, MultipleErrors, NotFound, RequestError
from models.mailboxes.tables import SpecialUse
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.filters import mutations as filter_mutations
from resolvers.filters.loaders import require_filter_capacity
from resolvers.filters.mutations import POSITION_RANGE, ValidatedFilter
from resolvers.filters.sieve_script_mutations import not_compiled_error, validated_script_size
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.users.selection import require_managed_users

MUTATION_NAME = "filterImport"
SPECIAL_USE_BY_FLAG = {f"\\{use.lower()}": use for use in SpecialUse if use is not SpecialUse.INBOX}


@dataclass(frozen=True, slots=True)
class SieveImportResult:
    """The IDs of the created filters in script order, and warnings about differences."""

    filter_ids: Sequence[int]
    warnings: Sequence[ScriptProblem]


async def import_script(
    ctx: Context, user_id: int | None, script_text: str, *, replaces_existing: bool
) -> SieveImportResult:
    """Create filters from a script, after the user's filters or in place of them.

    Raises MultipleErrors or InvalidInput for each mistake, LimitReached, Forbidden or NotFound.
    """
    owner = require_user_id(ctx) if user_id is None else user_id
    filter_mutations.require_permission_for_others_filters(ctx, [owner])
    validated_script_size(script_text)
    reading = await asyncio.to_thread(_parse_supported_script_or_raise, ctx, script_text)
    async with ctx.write_session(owner) as session:
        (user,) = await require_managed_users(ctx, [owner], path="user")
        if replaces_existing:
            await filter_mutations.delete_all_filters_of_user(ctx, session, user, MUTATION_NAME)
        await require_filter_capacity(ctx, owner, len(reading.filters), "content")
        validated_filters = await _validate_filters(ctx, owner, reading.filters)
        first = await filter_mutations.position_after_all_filters(ctx, owner)
        for nth, filter_ in enumerate(validated_filters):
            filter_.row["position"] = min(first + nth, POSITION_RANGE[-1])
        await filter_mutations.insert_filters(ctx, session, user, validated_filters, MUTATION_NAME)
    return SieveImportResult(
        [int(filter_.row["id"]) for filter_ in validated_filters], reading.warnings
    )


def text_with_position(problem: ScriptProblem) -> str:
    """Return the message of a problem with its line and column."""
    return f"line {problem.line}, column {problem.column}: {problem.message}"


def _parse_supported_script_or_raise(ctx: Context, script_text: str) -> SieveImport:
    options = ctx.environment.options
    interval = int(options.autoreply_interval.total_seconds())
    try:
        imported = sieve_import.filters_and_problems_from_sieve_script(
            script_text, reply_interval=interval, max_filters=options.filters_max_per_user
        )
    except SieveError as error:
        raise not_compiled_error(error) from error
    _raise_if_any(
        [
            _invalid_script_error(error, ValidationConstraint.UNSUPPORTED)
            for error in imported.errors
        ]
    )
    return imported


def _invalid_script_error(problem: ScriptProblem, constraint: ValidationConstraint) -> InvalidInput:
    return InvalidInput(text_with_position(problem), constraint=constraint, path=["content"])


async def _validate_filters(
    ctx: Context, owner_id: int, filters: Sequence[ImportedFilter]
) -> list[ValidatedFilter]:
    """Validate the filters. Raises the first problems together."""
    mailboxes = await _require_selectors_by_folder(ctx, owner_id, filters)
    validated_filters: list[ValidatedFilter] = []
    problems: list[RequestError] = []
    for filter_ in filters:
        action = {
            name: _with_mailbox_selectors(value, mailboxes)
            for name, value in filter_.action.items()
        }
        values = {"name": filter_.name, "query": filter_.query, "action": action}
        try:
            validated_filters.append(
                await filter_mutations.validate_new_filter(ctx, owner_id, values)
            )
        except (InvalidInput, NotFound, MultipleErrors) as refusal:
            problems += [_with_script_position(filter_, error) for error in refusal.all_errors]
        if len(problems) >= limits.MAX_PROBLEMS:
            break
    _raise_if_any(problems)
    return validated_filters


def _raise_if_any(problems: Sequence[RequestError]) -> None:
    if problems:
        raise MultipleErrors(problems[: limits.MAX_PROBLEMS])


def _with_script_position(parsed_filter: ImportedFilter, refusal: RequestError) -> RequestError:
    """Return the error with the position of its filter in the script."""
    constraint = (
        refusal.constraint if isinstance(refusal, InvalidInput) else ValidationConstraint.UNKNOWN
    )
    return _invalid_script_error(
        ScriptProblem(*parsed_filter.position, refusal.message), constraint
    )


async def _require_selectors_by_folder(
    ctx: Context, owner_id: int, filters: Sequence[ImportedFilter]
) -> dict[MailboxName, MailboxSelector]:
    """Find the mailbox for each folder of a script. Raises InvalidInput for each missing one."""
    folders = list(
        dict.fromkeys(folder for filter_ in filters for folder in _folders_in_action(filter_))
    )
    names = {folder: _candidate_selectors(folder) for folder in folders}
    keys = list(dict.fromkeys((owner_id, name) for each in names.values() for name in each))
    rows = await mailbox_loaders.load_visible_by_selectors(ctx, keys) if keys else []
    existing_folders = {name for (_, name), row in zip(keys, rows, strict=True) if row is not None}
    selectors_by_name: dict[MailboxName, MailboxSelector] = {}
    problems: list[RequestError] = []
    for folder in folders:
        name = next((name for name in names[folder] if name in existing_folders), None)
        if name is None:
            error_text = f"Mailbox not found: {folder.path}."
            problems.append(
                _invalid_script_error(
                    ScriptProblem(*folder.position, error_text), ValidationConstraint.UNKNOWN
                )
            )
        else:
            selectors_by_name[folder] = name
    _raise_if_any(problems)
    return selectors_by_name


def _folders_in_action(parsed_filter: ImportedFilter) -> list[MailboxName]:
    action = parsed_filter.action
    return [*([action["mailbox"]] if "mailbox" in action else ()), *action.get("copyTo", ())]


def _candidate_selectors(folder: MailboxName) -> list[MailboxSelector]:
    """Return the selectors for a folder; the first one that exists counts."""
    use = SPECIAL_USE_BY_FLAG.get(folder.special_use or "")
    return [*([MailboxSelector(special_use=use)] if use else ()), MailboxSelector(path=folder.path)]


def _with_mailbox_selectors(
    value: Any, selector_by_folder: Mapping[MailboxName, MailboxSelector]
) -> Any:
    """Return a part of an action with selectors in place of folders."""
    if isinstance(value, MailboxName):
        return selector_by_folder[value]
    if isinstance(value, list):
        return [
            selector_by_folder[item] if isinstance(item, MailboxName) else item for item in value
        ]
    return value

"""A dry run of an account's filters on a message."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mail.filters import filter_compiler
from mail.filters.filter_compiler import EvaluatedFilter, FilterTestMessage
from mail.mime import parse_structure
from mail.sieve import ParsedSieveMessage
from models.errors import InvalidInput, NotFound, check_limit
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.filters import descriptions
from resolvers.filters import loaders as filter_loaders
from resolvers.messages import content

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class FilterDryRun:
    """A filter, whether it matches a message, and descriptions of what it would do."""

    filter_row: ColumnRow
    matches: bool
    action_descriptions: Sequence[str]


async def run_filters_on_message(
    ctx: Context, user_id: int, message_id: int | None, raw_message: str | None
) -> list[FilterDryRun]:
    """Run the filters of an account, also inactive ones, on a message, without any effect.

    Inactive filters report a match but no actions. Raises InvalidInput unless one of message and
    raw is given, NotFound if the viewer can't see the message, and LimitReached.
    """
    rows = await filter_loaders.load_all_of_user(ctx, user_id)
    active = [filter_loaders.rule_from_row(row) for row in rows if row.active]
    inactive_rules = [filter_loaders.rule_from_row(row) for row in rows if not row.active]

    def run_filters(parsed_message: ParsedSieveMessage) -> dict[int, EvaluatedFilter]:
        test_message = FilterTestMessage(parsed_message)
        found = filter_compiler.evaluate_filters(active, test_message, continue_after_stop=True)
        return {one.compiled_filter.filter_id: one for one in found} | {
            rule.filter_id: EvaluatedFilter(rule, test_message.matches_and_steps(rule.query)[0])
            for rule in inactive_rules
        }

    found = await _run_on_stored_or_raw_message(ctx, message_id, raw_message, run_filters)
    terms = await filter_loaders.load_terms_of_user(ctx, user_id)
    return [await _result_of_filter(ctx, row, found.get(row.id), terms) for row in rows]


async def _result_of_filter(
    ctx: Context,
    filter_row: ColumnRow,
    outcome: EvaluatedFilter | None,
    terms: descriptions.FilterTerms,
) -> FilterDryRun:
    if outcome is None:
        return FilterDryRun(filter_row, False, ())
    names = await filter_loaders.load_sieve_names(ctx, outcome.compiled_filter.action)
    parts = (
        descriptions.describe_action_part(
            terms, name, outcome.compiled_filter.action[name], names.mailbox_paths
        )
        for name in outcome.effective_actions
    )
    return FilterDryRun(
        filter_row, outcome.matches, [f"{part.label}: {part.value}" for part in parts]
    )


async def _run_on_stored_or_raw_message(
    ctx: Context,
    message_id: int | None,
    raw_message: str | None,
    run_filters: Callable[[ParsedSieveMessage], Result],
) -> Result:
    if (message_id is None) is (raw_message is None):
        raise InvalidInput(
            "Exactly one of message and raw is required",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["message"],
        )
    if raw_message is None:
        stored = await content.load_stored_message(ctx, message_id or 0)
        if stored is None:
            raise NotFound(str(message_id), path=["message"])
        tree = stored.structure
        return await stored.examine(
            lambda source: run_filters(ParsedSieveMessage(source, tree)), in_thread=True
        )
    try:
        message_bytes = raw_message.encode()
    except UnicodeEncodeError as half:
        raise InvalidInput(
            "The text has an unpaired surrogate",
            constraint=ValidationConstraint.UNICODE,
            path=["raw"],
        ) from half
    max_bytes = ctx.environment.options.message_max_size
    check_limit(len(message_bytes), max_bytes, f"at most {max_bytes} bytes", path=["raw"])
    return await asyncio.to_thread(
        lambda: run_filters(ParsedSieveMessage(message_bytes, parse_structure(message_bytes)))
    )

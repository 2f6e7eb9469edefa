"""A dry run of an account's filters on a message."""

from collections.abc import Sequence
from dataclasses import dataclass

from mail.filters import filter_evaluation
from mail.filters.filter_evaluation import CompiledFilter, EvaluatedFilter, FilterTestMessage
from mail.sieve import ParsedSieveMessage
from models.store.columns import ColumnRow
from resolvers.context import Context
from resolvers.filters import descriptions
from resolvers.filters import loaders as filter_loaders
from resolvers.filters.dry_run_messages import DryRunMessage, load_and_examine_message


@dataclass(frozen=True, slots=True)
class FilterDryRun:
    """A filter, whether it matches a message, and descriptions of what it would do."""

    filter_row: ColumnRow
    matches: bool
    action_descriptions: Sequence[str]
    exceeds_limit: bool  # it was stopped, or not run, because of a step limit


async def dry_run_filters_on_message(
    ctx: Context, user_id: int, message: DryRunMessage
) -> list[FilterDryRun]:
    """Run the filters of an account, also inactive ones, on a message, without any effect.

    Inactive filters report a match but no actions. Raises NotFound if the viewer
    can't see the message, InvalidInput and LimitReached for raw text (see
    `load_and_examine_message`).
    """
    rows = await filter_loaders.load_visible_filters_of_user(ctx, user_id)
    active = [filter_loaders.rule_from_row(row) for row in rows if row.active]
    inactive_rules = [filter_loaders.rule_from_row(row) for row in rows if not row.active]

    def evaluate_filters(parsed_message: ParsedSieveMessage) -> dict[int, EvaluatedFilter]:
        test_message = FilterTestMessage(parsed_message)
        evaluated_filters = filter_evaluation.evaluate_filters(
            active, test_message, continue_after_stop=True
        )
        return {
            evaluated_filter.compiled_filter.filter_id: evaluated_filter
            for evaluated_filter in evaluated_filters
        } | {
            rule.filter_id: _evaluate_inactive_filter(rule, test_message) for rule in inactive_rules
        }

    results = await load_and_examine_message(ctx, message, evaluate_filters)
    terms = await filter_loaders.load_filter_wording_of_user(ctx, user_id)
    return [await _result_of_filter(ctx, row, results[row.id], terms) for row in rows]


def _evaluate_inactive_filter(
    rule: CompiledFilter, test_message: FilterTestMessage
) -> EvaluatedFilter:
    query_match = test_message.matches_and_steps(rule.query)
    return EvaluatedFilter(rule, query_match.matches, exceeds_limit=query_match.exceeds_limit)


async def _result_of_filter(
    ctx: Context,
    filter_row: ColumnRow,
    outcome: EvaluatedFilter,
    terms: descriptions.FilterTerms,
) -> FilterDryRun:
    names = await filter_loaders.load_sieve_names(ctx, outcome.compiled_filter.action)
    parts = (
        descriptions.describe_action_part(
            terms, name, outcome.compiled_filter.action[name], names.mailbox_paths
        )
        for name in outcome.effective_actions
    )
    return FilterDryRun(
        filter_row,
        outcome.matches,
        [f"{part.label}: {part.value}" for part in parts],
        outcome.exceeds_limit,
    )

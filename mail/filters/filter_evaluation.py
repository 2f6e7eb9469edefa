"""Evaluate compiled filters for a message, and combine their actions.

Filters run in order. For `seen`, `flag`, `delete`, `spam` and `mailbox` the first matching filter
that sets the field decides, even with False. For all other fields the values of all filters are
combined, and keywords that one of them removes are not set. A filter with `stop` is the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from mail import sieve
from mail.filters.filter_compiler import FilterForm, extensions_of_test, sieve_test_from_query
from mail.filters.filter_result import FilterReplyContent, FilterResult, FilterTarget
from mail.sieve import SieveEnvelope, SieveEnvironment, SieveProgram, SieveRunError, limits
from mail.sieve.syntax.syntax_tree import (
    CommandNode,
    string_list,
)
from mail.storage.message_flags import unique_keywords, without_keywords

FIRST_WINS = (
    "delete",
    "spam",
    "mailbox",
    "seen",
    "flag",
)  # the first filter that sets the field decides
ACTION_NAMES = (
    *FIRST_WINS, "copyTo", "keywords", "removeKeywords", "forwardTo", "reply", "webhook", "stop",
)  # fmt: skip
MAX_STEPS = 40_000  # interpreter steps for all filters of an account and one message
MAX_PLACES = 32  # mailboxes, and keywords, that filters give a message
MAX_CACHED_PROGRAMS = 1024  # in the cache
MAX_CACHED_QUERY = 2048  # bytes of a query whose program is cached
BYTES_PER_STEP = 8  # a larger query is compiled each time, at this cost
_FIXED_TIME = datetime(1970, 1, 1, tzinfo=UTC)  # filters don't use the current time
_EMPTY_ENVELOPE = SieveEnvelope("", "")  # filters don't use the envelope


@lru_cache(MAX_CACHED_PROGRAMS)
def _cached_program(query_json: bytes) -> SieveProgram:
    """Return the program of a query from the cache."""
    return _compile_query(query_json)


class _ProgramWithCost(NamedTuple):
    """The program of a query, and the steps that compiling it counts as."""

    program: SieveProgram
    step_cost: int


def _program_and_cost(query_json: bytes) -> _ProgramWithCost:
    """Return the program of a query and the steps that compiling it counts as."""
    if len(query_json) <= MAX_CACHED_QUERY:
        return _ProgramWithCost(_cached_program(query_json), 0)
    return _ProgramWithCost(_compile_query(query_json), len(query_json) // BYTES_PER_STEP)


def _compile_query(query_json: bytes) -> SieveProgram:
    """Compile a query to a program that discards matching messages."""
    test = sieve_test_from_query(orjson.loads(query_json))
    needed = sorted(set(extensions_of_test(test)))
    first = (CommandNode("require", (string_list(*needed),)),) if needed else ()
    return sieve.compile_tree((*first, CommandNode("if", (), (test,), (CommandNode("discard"),))))


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """A filter in the form that is run."""

    filter_id: int
    query: FilterForm
    action: FilterForm
    targets: Sequence[FilterTarget] = ()  # targets of the action, with secret URLs


class QueryMatch(NamedTuple):
    """Whether a query matches, and the steps that it took."""

    matches: bool
    step_count: int
    exceeds_limit: bool = False  # it was stopped at the step limit


@dataclass
class FilterTestMessage:
    """A message that filters test. Its decoded parts are shared by all filters."""

    sieve_message: sieve.SieveMessage
    _sieve_tests: sieve.SieveTests = field(init=False)

    def __post_init__(self) -> None:
        self._sieve_tests = sieve.SieveTests(
            self.sieve_message, _EMPTY_ENVELOPE, SieveEnvironment(_FIXED_TIME, traced=False)
        )

    def matches_and_steps(self, query: FilterForm) -> QueryMatch:
        """Evaluate a query. A query beyond the step limit does not match."""
        encoded_query = orjson.dumps(query, option=orjson.OPT_SORT_KEYS)
        program, steps = _program_and_cost(encoded_query)
        try:
            fits, later_steps = self._sieve_tests.evaluate_first(program)
        except SieveRunError:
            return QueryMatch(False, limits.MAX_STEPS, exceeds_limit=True)
        return QueryMatch(fits, steps + later_steps)


@dataclass(frozen=True, slots=True)
class EvaluatedFilter:
    """A filter with the result of its query."""

    compiled_filter: CompiledFilter
    matches: bool
    effective_actions: tuple[
        str, ...
    ] = ()  # action fields with an effect, in the order of ACTION_NAMES
    exceeds_limit: bool = False  # its own limit or that of all filters was reached before its end


def evaluate_filters(
    filters: Sequence[CompiledFilter],
    message: FilterTestMessage,
    *,
    continue_after_stop: bool = False,
) -> list[EvaluatedFilter]:
    """Evaluate filters in order, up to one that matches and has `stop`.

    With `continue_after_stop`, the filters after it are evaluated too, but have no effect.
    """
    evaluated_filters: list[EvaluatedFilter] = []
    action: dict[str, Any] = {}
    ended, spent = False, 0
    for rule in filters:
        if ended and not continue_after_stop:
            break
        if spent > MAX_STEPS:
            evaluated_filters.append(EvaluatedFilter(rule, False, exceeds_limit=True))
            continue
        fits, steps, exceeds_limit = message.matches_and_steps(rule.query)
        spent += steps
        acts: list[str] = []
        if fits and not ended:
            acts = [name for name in ACTION_NAMES if name in rule.action and name not in action]
            action |= {name: rule.action[name] for name in acts if name in FIRST_WINS}
            ended = bool(rule.action.get("stop"))
        evaluated_filters.append(EvaluatedFilter(rule, fits, tuple(acts), exceeds_limit))
    hidden = _overridden_actions(action)
    return (
        [_without_actions(evaluated_filter, hidden) for evaluated_filter in evaluated_filters]
        if hidden
        else evaluated_filters
    )


def _overridden_actions(decided_actions: FilterForm) -> frozenset[str]:
    """Return the actions that have no effect because of an earlier decision."""
    if decided_actions.get("delete"):
        return frozenset({"spam", "mailbox", "copyTo"})
    return frozenset({"mailbox"}) if decided_actions.get("spam") else frozenset()


def _without_actions(evaluated: EvaluatedFilter, action_names: frozenset[str]) -> EvaluatedFilter:
    """Return the evaluated filter without some of its actions."""
    remaining = tuple(name for name in evaluated.effective_actions if name not in action_names)
    return replace(evaluated, effective_actions=remaining)


def combined_result_of_matching_filters(
    filters: Sequence[CompiledFilter], message: FilterTestMessage
) -> FilterResult:
    """Return what the matching ones of these filters do with a message, in their order.

    Of each action in FIRST_WINS, the first filter that has one decides. Copies, keywords, targets,
    replies and webhooks of all are joined. A removed keyword is never added, and a deleted message
    is not copied. `mailbox_id` is set beside `delete` and `spam`, which have precedence. It is used
    if the account keeps no spam in Junk.
    """
    evaluated_filters = evaluate_filters(filters, message)
    matching = [filter_ for filter_ in evaluated_filters if filter_.matches]
    action: dict[str, Any] = {}
    for evaluated_filter in matching:
        for name in FIRST_WINS:
            if name in evaluated_filter.compiled_filter.action:
                action.setdefault(name, evaluated_filter.compiled_filter.action[name])
    removed = unique_keywords(_unique_action_values(matching, "removeKeywords"))
    added = without_keywords(unique_keywords(_unique_action_values(matching, "keywords")), removed)
    hooks = [
        evaluated_filter.compiled_filter.action["webhook"]
        for evaluated_filter in matching
        if "webhook" in evaluated_filter.compiled_filter.action
    ]
    targets: dict[str, FilterTarget] = {}
    for target in (
        target
        for evaluated_filter in matching
        for target in evaluated_filter.compiled_filter.targets
    ):
        targets.setdefault(_comparable_target(target), target)
    return FilterResult(
        is_deleted=bool(action.get("delete")),
        is_spam=action.get("spam"),
        mailbox_id=action.get("mailbox"),
        copy_mailbox_ids=()
        if action.get("delete")
        else _unique_action_values(matching, "copyTo")[:MAX_PLACES],
        is_seen=bool(action.get("seen")),
        is_flagged=bool(action.get("flag")),
        added_keywords=added[:MAX_PLACES],
        removed_keywords=removed,
        targets=list(targets.values()),
        replies=[
            _reply_of_filter(evaluated_filter.compiled_filter)
            for evaluated_filter in matching
            if "reply" in evaluated_filter.compiled_filter.action
        ],
        webhook_ids=list(dict.fromkeys(hooks)),
        matched_filter_ids=[
            evaluated_filter.compiled_filter.filter_id for evaluated_filter in matching
        ],
        stopped_filter_ids=[
            evaluated_filter.compiled_filter.filter_id
            for evaluated_filter in evaluated_filters
            if evaluated_filter.exceeds_limit
        ],
    )


def _comparable_target(target: FilterTarget) -> str:
    """Return the target in the form that duplicates are found by."""
    return target.secret_url if "://" in target.secret_url else target.secret_url.casefold()


def _unique_action_values(matching: Sequence[EvaluatedFilter], action_name: str) -> list[Any]:
    """Return the values that filters set for an action, each once."""
    return list(
        dict.fromkeys(
            item
            for evaluated_filter in matching
            for item in evaluated_filter.compiled_filter.action.get(action_name, ())
        )
    )


def _reply_of_filter(compiled_filter: CompiledFilter) -> FilterReplyContent:
    """Return the reply of a filter."""
    reply = compiled_filter.action["reply"]
    return FilterReplyContent(
        compiled_filter.filter_id, reply["subject"], reply["text"], reply["html"]
    )

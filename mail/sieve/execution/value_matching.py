"""Comparison of the values of a message with the keys of a test."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from mail.sieve import limits
from mail.sieve.execution import comparators, regex_groups
from mail.sieve.execution.comparators import CASEMAP, NUMERIC, PLAIN, MatchGroups
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import SieveCall
from models.errors import InvalidInput

_Value = TypeVar("_Value")
_COMPILED_STATES_PER_STEP = 25  # states of a compiled expression that count as one step
_KeyFinder = Callable[[str], MatchGroups | None]


def any_value_matches(
    run: ScriptRun,
    call: SieveCall,
    values: Iterable[str],
    keys: Sequence[str],
    *,
    set_match_variables: bool = True,
) -> bool:
    """True if one of the values matches one of the keys of a test.

    For :count the number of values is compared. With `set_match_variables` a match of wildcards
    sets the numbered variables (RFC 5229, section 3.2).
    """
    match_type, comparator = _match_type_and_comparator(call)
    if match_type == "count":
        values = [str(sum(1 for _ in values))]
    if match_type in ("is", "contains") and comparator != NUMERIC:
        return _any_value_equals_or_contains(run, call, values, keys)
    prepared = [_match_groups_finder(run, call, match_type, comparator, key) for key in keys]
    for value in values:
        for key, find in zip(keys, prepared, strict=True):
            run.count_steps(call, comparators.comparison_steps(len(value) + len(key)))
            is_match = find(value)
            if is_match is not None:
                if (
                    set_match_variables
                    and match_type in ("matches", "regex")
                    and "variables" in run.program.extensions
                ):
                    run.match_variables = is_match[: limits.MAX_MATCH_VARIABLES]
                return True
    return False


def _match_type_and_comparator(call: SieveCall) -> tuple[str, str]:
    """Return the match type and the comparator of a test."""
    match_type_and_comparator: tuple[str, str] | None = call.cache.get("how")
    if match_type_and_comparator is None:
        match_type_and_comparator = (
            call.chosen_tag("match", "is"),
            call.chosen_tag("comparator", CASEMAP),
        )
        call.cache["how"] = match_type_and_comparator
    return match_type_and_comparator


def _any_value_equals_or_contains(
    run: ScriptRun, call: SieveCall, values: Iterable[str], keys: Sequence[str]
) -> bool:
    """True if one of the values equals one of the keys, or contains it for :contains."""
    kind, comparator = _match_type_and_comparator(call)
    within = kind != "is"
    fold = comparators.EQUALITY_KEYS[comparator]
    if keys is call.cache.get("keys"):
        needles = call.cache.get("needles")
        if needles is None:
            needles = call.cache["needles"] = [fold(key) for key in keys]
    else:
        needles = [fold(key) for key in keys]
    longest = max(map(len, needles), default=0)
    for value in values:
        run.count_steps(call, len(needles) * comparators.comparison_steps(len(value) + longest))
        text = run.comparison_key(comparator, value)
        if any(needle in text for needle in needles) if within else text in needles:
            return True
    return False


def _match_groups_finder(
    run: ScriptRun, call: SieveCall, match_type: str, comparator: str, key: str
) -> _KeyFinder:
    """Return a function that matches a value with a key."""
    if match_type in ("value", "count"):
        relation = call.chosen_tag(match_type, "eq").lower()
        return lambda value: _whole_value_if(
            value, comparators.satisfies_relation(relation, value, key, comparator)
        )
    if comparator == NUMERIC:
        number = comparators.numeric_key(key)
        return lambda value: _whole_value_if(value, comparators.numeric_key(value) == number)
    if match_type == "regex":
        return _regex_groups_finder(run, call, key, ignore_case=comparator == CASEMAP)
    if match_type == "matches":
        return _wildcard_groups_finder(run, call, key, comparator)
    raise LookupError(match_type)


def _whole_value_if(value: str, matches: bool) -> MatchGroups | None:
    return (value,) if matches else None


def _wildcard_groups_finder(
    run: ScriptRun, call: SieveCall, key: str, comparator: str
) -> _KeyFinder:
    """Return a function that matches values with the wildcards of `key`, and counts its steps."""
    run.count_steps(call, comparators.comparison_steps(len(key), 8))
    finders = call.cache.setdefault("wild", {})
    pattern: comparators.WildcardPattern | None = finders.get(key)
    if pattern is None:
        pattern = comparators.parse_wildcards(comparators.EQUALITY_KEYS[comparator](key))
        if key in call.strings_argument("keys"):  # and not a key with variables
            finders[key] = pattern

    def find(value: str) -> MatchGroups | None:
        run.count_steps(call, comparators.comparison_steps(len(value), pattern.cost_per_character))
        return pattern.match(value, run.comparison_key(comparator, value))

    return find


def _regex_groups_finder(
    run: ScriptRun, call: SieveCall, key: str, *, ignore_case: bool
) -> _KeyFinder:
    """Return a function that matches values with the expression `key`, and counts its steps."""
    try:
        pattern = regex_groups.compile_regex(key, ignore_case=ignore_case)
    except InvalidInput as problem:
        raise run.error_at(call, f"A regular expression is invalid: {problem}") from problem
    run.count_steps(call, len(pattern.expression.states) // _COMPILED_STATES_PER_STEP)

    def find(value: str) -> MatchGroups | None:
        return regex_groups.match_groups(pattern, value, lambda steps: run.count_steps(call, steps))

    return find


def values_at_index(call: SieveCall, values: Sequence[_Value]) -> Sequence[_Value]:
    """Return the value that :index and :last select, or all (RFC 5260, section 6)."""
    if not call.has_argument("index"):
        return values
    nth = call.number_argument("index")
    if call.has_argument("last"):
        return values[-nth:][:1] if nth <= len(values) else ()
    return values[nth - 1 : nth]


def _regex_problem(key: str) -> str | None:
    try:
        regex_groups.compile_regex(key, ignore_case=True)
    except InvalidInput as problem:
        return f"A regular expression is invalid: {problem}"
    return None


def _comparator_and_match_type_problem(comparator: str, match_type: str) -> str | None:
    if comparator == NUMERIC and match_type in ("contains", "matches", "regex"):
        return f"{NUMERIC} compares numbers, and can't be used with :{match_type}."
    if comparator == PLAIN and match_type not in ("is", "contains"):
        return f"{PLAIN} can only be used with :is and :contains."
    return None


def match_tags_problem(call: SieveCall) -> str | None:
    """Return the problem with the tags for comparison and index, None if nothing is."""
    kind = call.chosen_tag("match", "is")
    comparator = call.chosen_tag("comparator", CASEMAP)
    if problem := _comparator_and_match_type_problem(comparator, kind):
        return problem
    if (
        kind in ("value", "count")
        and call.chosen_tag(kind, "eq").lower() not in comparators.RELATIONS
    ):
        return f":{kind} must be followed by one of {', '.join(comparators.RELATIONS)}."
    if kind == "regex":
        for key in call.strings_argument("keys") or call.strings_argument("list"):
            if isinstance(key, str) and (problem := _regex_problem(key)):
                return problem
    if call.has_argument("last") and not call.has_argument("index"):
        return ":last requires :index."
    if call.has_argument("index") and call.number_argument("index") < 1:
        return ":index begins with 1."
    return None

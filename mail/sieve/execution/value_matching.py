"""Comparison of the values of a message with the keys of a test."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from mail.sieve import limits
from mail.sieve.execution import comparators, regex_groups
from mail.sieve.execution.comparators import CASEMAP, NUMERIC, PLAIN, Matched
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import Call
from models.errors import Invalid

_Value = TypeVar("_Value")
_STATES_PER_STEP = 25  # states of a compiled expression that count as one step
_Found = Callable[[str], Matched | None]


def matched(
    run: Run, call: Call, values: Iterable[str], keys: Sequence[str], *, sets: bool = True
) -> bool:
    """True if one of the values matches one of the keys of a test.

    For :count the number of values is compared. With `set_match_variables` a match of wildcards
    sets the numbered variables (RFC 5229, section 3.2).
    """
    kind, comparator = _how(call)
    if kind == "count":
        values = [str(sum(1 for _ in values))]
    if kind in ("is", "contains") and comparator != NUMERIC:
        return _found(run, call, values, keys)
    prepared = [_prepared(run, call, kind, comparator, key) for key in keys]
    for value in values:
        for key, find in zip(keys, prepared, strict=True):
            run.spend(call, comparators.cost(len(value) + len(key)))
            found = find(value)
            if found is not None:
                if sets and kind in ("matches", "regex") and "variables" in run.program.extensions:
                    run.matches = found[: limits.MATCHES]
                return True
    return False


def _how(call: Call) -> tuple[str, str]:
    """Return the match type and the comparator of a test."""
    found: tuple[str, str] | None = call.worked.get("how")
    if found is None:
        found = call.chosen("match", "is"), call.chosen("comparator", CASEMAP)
        call.worked["how"] = found
    return found


def _found(run: Run, call: Call, values: Iterable[str], keys: Sequence[str]) -> bool:
    """True if one of the values equals one of the keys, or contains it for :contains."""
    kind, comparator = _how(call)
    within = kind != "is"
    fold = comparators.FOLDS[comparator]
    if keys is call.worked.get("keys"):
        needles = call.worked.get("needles")
        if needles is None:
            needles = call.worked["needles"] = [fold(key) for key in keys]
    else:
        needles = [fold(key) for key in keys]
    longest = max(map(len, needles), default=0)
    for value in values:
        run.spend(call, len(needles) * comparators.cost(len(value) + longest))
        text = run.folded(comparator, value)
        if any(needle in text for needle in needles) if within else text in needles:
            return True
    return False


def _prepared(run: Run, call: Call, kind: str, comparator: str, key: str) -> _Found:
    """Return a function that matches a value with a key."""
    if kind in ("value", "count"):
        relation = call.chosen(kind, "eq").lower()
        return lambda value: _if(value, comparators.related(relation, value, key, comparator))
    if comparator == NUMERIC:
        number = comparators.numeric(key)
        return lambda value: _if(value, comparators.numeric(value) == number)
    if kind == "regex":
        return _searched(run, call, key, fold=comparator == CASEMAP)
    if kind == "matches":
        return _wild(run, call, key, comparator)
    raise LookupError(kind)


def _if(value: str, fits: bool) -> Matched | None:
    return (value,) if fits else None


def _wild(run: Run, call: Call, key: str, comparator: str) -> _Found:
    run.spend(call, comparators.cost(len(key), 8))
    known = call.worked.setdefault("wild", {})
    pattern: comparators.Wild | None = known.get(key)
    if pattern is None:
        pattern = comparators.wild(comparators.FOLDS[comparator](key))
        if key in call.strings("keys"):  # and not a key with variables
            known[key] = pattern

    def find(value: str) -> Matched | None:
        run.spend(call, comparators.cost(len(value), pattern.width))
        return pattern.match(value, run.folded(comparator, value))

    return find


def _searched(run: Run, call: Call, key: str, *, fold: bool) -> _Found:
    try:
        pattern = regex_groups.compiled(key, fold=fold)
    except Invalid as problem:
        raise run.failed(call, f"a regular expression cannot be read: {problem}") from problem
    run.spend(call, len(pattern.expression.states) // _STATES_PER_STEP)

    def find(value: str) -> Matched | None:
        return regex_groups.match(pattern, value, lambda steps: run.spend(call, steps))

    return find


def indexed(call: Call, values: Sequence[_Value]) -> Sequence[_Value]:
    """Return the value that :index and :last select, or all (RFC 5260, section 6)."""
    if not call.has("index"):
        return values
    nth = call.number("index")
    if call.has("last"):
        return values[-nth:][:1] if nth <= len(values) else ()
    return values[nth - 1 : nth]


def _unreadable(key: str) -> str | None:
    try:
        regex_groups.compiled(key, fold=True)
    except Invalid as problem:
        return f"a regular expression cannot be read: {problem}"
    return None


def _unfit(comparator: str, kind: str) -> str | None:
    if comparator == NUMERIC and kind in ("contains", "matches", "regex"):
        return f"{NUMERIC} compares numbers, and looks for none with :{kind}"
    if comparator == PLAIN and kind not in ("is", "contains"):
        return f"{PLAIN} compares with :is and :contains"
    return None


def check(call: Call) -> str | None:
    """Return the problem with the tags for comparison and index, None if nothing is."""
    kind = call.chosen("match", "is")
    comparator = call.chosen("comparator", CASEMAP)
    if problem := _unfit(comparator, kind):
        return problem
    if kind in ("value", "count") and call.chosen(kind, "eq").lower() not in comparators.RELATIONS:
        return f"behind :{kind} stands one of {', '.join(comparators.RELATIONS)}"
    if kind == "regex":
        for key in call.strings("keys") or call.strings("list"):
            if isinstance(key, str) and (problem := _unreadable(key)):
                return problem
    if call.has("last") and not call.has("index"):
        return ":last says from where :index counts"
    if call.has("index") and call.number("index") < 1:
        return ":index begins with 1"
    return None

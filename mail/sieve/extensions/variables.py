"""The command `set` and the test `string` (RFC 5229)."""

import re
from collections.abc import Callable
from urllib.parse import quote

from mail.sieve import limits
from mail.sieve.execution import comparators, value_matching
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import MATCH, Call, Given, Kind, Option, Signature
from mail.sieve.execution.string_templates import variable_name

# Precedence of the modifiers; a call has at most one of each precedence
# (RFC 5229, section 4.1; RFC 5435, section 6).
_SORTS = {
    "lower": 40,
    "upper": 40,
    "lowerfirst": 30,
    "upperfirst": 30,
    "quotewildcard": 20,
    "quoteregex": 20,
    "encodeurl": 15,
    "length": 10,
}


_WILD = re.compile(r"[*?\\]")
_MEANT = re.compile(r"[\\^$.\[\]|()?*+{}]")


def _lower(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


_CHANGES: dict[str, Callable[[str], str]] = {
    "lower": _lower,
    "upper": comparators.folded,
    "lowerfirst": lambda text: _lower(text[:1]) + text[1:],
    "upperfirst": lambda text: comparators.folded(text[:1]) + text[1:],
    "quotewildcard": lambda text: _WILD.sub(r"\\\g<0>", text),
    "quoteregex": lambda text: _MEANT.sub(r"\\\g<0>", text),
    "encodeurl": lambda text: quote(text.encode("utf-8", "surrogatepass"), safe="-._~"),
    "length": lambda text: str(len(text)),
}


def modified(call: Call, value: str) -> str:
    """Apply the modifiers of a call to a value, the highest precedence first."""
    value = value[: limits.EXPANDED]
    for name in sorted(_SORTS, key=lambda name: -_SORTS[name]):
        if call.has(name):
            value = _CHANGES[name](value)
    return value


def _set(run: Run, call: Call) -> None:
    value = modified(call, run.text(call, "value"))
    name = call.chosen("name", "")
    run.set_variable(call, name.lower(), value)
    run.note(call, f'{name} is "{value}"')


def _string(run: Run, call: Call) -> bool:
    source = run.texts(call, "source")
    if call.chosen("match", "is") == "count":
        source = [one for one in source if one]
    return value_matching.matched(run, call, source, run.texts(call, "keys"))


def _check_set(call: Call) -> str | None:
    try:
        variable_name(call.chosen("name", ""), has_globals=True)
    except ValueError as problem:
        return str(problem)
    return None


MODIFIERS = tuple(
    Option(
        name,
        group=f"modifier {sort}",
        extension={"encodeurl": "enotify", "quoteregex": "regex"}.get(name),
    )
    for name, sort in _SORTS.items()
)
COMMANDS = (
    Signature(
        "set",
        _set,
        (Given("name", constant=True), Given("value")),
        MODIFIERS,
        extension="variables",
        check=_check_set,
    ),
)
TESTS = (
    Signature(
        "string",
        _string,
        (Given("source", Kind.STRINGS), Given("keys", Kind.STRINGS)),
        MATCH,
        extension="variables",
        check=value_matching.check,
    ),
)

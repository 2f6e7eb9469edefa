"""The command `set` and the test `string` (RFC 5229)."""

import re
from collections.abc import Callable
from urllib.parse import quote

from mail.sieve import limits
from mail.sieve.execution import comparators, value_matching
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    MATCH_OPTIONS,
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)
from mail.sieve.execution.string_templates import parse_variable_name

# Precedence of the modifiers; a call has at most one of each precedence
# (RFC 5229, section 4.1; RFC 5435, section 6).
_MODIFIER_PRECEDENCE = {
    "lower": 40,
    "upper": 40,
    "lowerfirst": 30,
    "upperfirst": 30,
    "quotewildcard": 20,
    "quoteregex": 20,
    "encodeurl": 15,
    "length": 10,
}


_WILDCARD_CHARACTERS = re.compile(r"[*?\\]")
_REGEX_CHARACTERS = re.compile(r"[\\^$.\[\]|()?*+{}]")


def _ascii_lower(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


_MODIFIER_FUNCTIONS: dict[str, Callable[[str], str]] = {
    "lower": _ascii_lower,
    "upper": comparators.ascii_casemap_key,
    "lowerfirst": lambda text: _ascii_lower(text[:1]) + text[1:],
    "upperfirst": lambda text: comparators.ascii_casemap_key(text[:1]) + text[1:],
    "quotewildcard": lambda text: _WILDCARD_CHARACTERS.sub(r"\\\g<0>", text),
    "quoteregex": lambda text: _REGEX_CHARACTERS.sub(r"\\\g<0>", text),
    "encodeurl": lambda text: quote(text.encode("utf-8", "surrogatepass"), safe="-._~"),
    "length": lambda text: str(len(text)),
}


def apply_modifiers(call: SieveCall, value: str) -> str:
    """Apply the modifiers of a call to a value, the highest precedence first."""
    value = value[: limits.MAX_EXPANDED_LENGTH]
    for name in sorted(_MODIFIER_PRECEDENCE, key=lambda name: -_MODIFIER_PRECEDENCE[name]):
        if call.has_argument(name):
            value = _MODIFIER_FUNCTIONS[name](value)
    return value


def _execute_set(run: ScriptRun, call: SieveCall) -> None:
    value = apply_modifiers(call, run.expanded_argument_or_empty(call, "value"))
    name = call.chosen_tag("name", "")
    run.set_variable(call, name.lower(), value)
    run.add_trace_step(call, f'{name} is "{value}"')


def _evaluate_string(run: ScriptRun, call: SieveCall) -> bool:
    source = run.strings_argument(call, "source")
    if call.chosen_tag("match", "is") == "count":
        source = [value for value in source if value]
    return value_matching.any_value_matches(run, call, source, run.strings_argument(call, "keys"))


def _set_variable_name_problem(call: SieveCall) -> str | None:
    try:
        parse_variable_name(call.chosen_tag("name", ""), allow_globals=True)
    except ValueError as problem:
        return str(problem)
    return None


MODIFIER_OPTIONS = tuple(
    TagOption(
        name,
        group=f"modifier {sort}",
        extension={"encodeurl": "enotify", "quoteregex": "regex"}.get(name),
    )
    for name, sort in _MODIFIER_PRECEDENCE.items()
)
COMMANDS = (
    CallSignature(
        "set",
        _execute_set,
        (PositionalArgument("name", is_constant=True), PositionalArgument("value")),
        MODIFIER_OPTIONS,
        extension="variables",
        find_problem=_set_variable_name_problem,
    ),
)
TESTS = (
    CallSignature(
        "string",
        _evaluate_string,
        (
            PositionalArgument("source", ArgumentType.STRINGS),
            PositionalArgument("keys", ArgumentType.STRINGS),
        ),
        MATCH_OPTIONS,
        extension="variables",
        find_problem=value_matching.match_tags_problem,
    ),
)

"""Convert Sieve tests to filter queries, the reverse of filter_compiler.sieve_test_from_query.

A test that a query can't express is an error. A query that is only similar gives a warning: queries
ignore case, and search the whole header field for a part of an address.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mail.filters.filter_compiler import HEADER_FIELDS
from mail.sieve import ScriptProblem
from mail.sieve.execution.comparators import NUMERIC, OCTET
from mail.sieve.execution.signatures import SieveCall
from mail.sieve.source_position import SourcePosition

QueryForm = dict[str, Any]

NEVER_TRUE: QueryForm = {"not": [{}]}
_COMPARISON_ARGUMENTS = {
    "match",
    "is",
    "contains",
    "matches",
    "regex",
    "comparator",
    "names",
    "keys",
}
_BODY_ARGUMENTS = _COMPARISON_ARGUMENTS | {"transform", "text"}
_ADDRESS_ARGUMENTS = _COMPARISON_ARGUMENTS | {"part", "all", "localpart", "domain"}
_SINGLE_ADDRESS_FIELDS = {
    "from",
    "resent-from",
    "resent-sender",
    "return-path",
    "sender",
}  # fields with one address
_REGEX_SPECIAL = re.compile(r"([\\^$.|?*+()\[\]{}])")
_ADDRESS_CHARACTER = r"[^<>,;\s]"
_LOCAL_CHARACTER = r"[^<>,;\s@]"  # of a local part or domain


class NoFilterEquivalent(Exception):
    """Filters have no equivalent of a command or test at this position."""

    def __init__(self, position: SourcePosition, problem_text: str) -> None:
        self.problem = ScriptProblem(*position, problem_text)
        super().__init__(problem_text)


@dataclass
class ImportProblems:
    """The errors and warnings of an import."""

    errors: list[ScriptProblem] = field(default_factory=list)
    warnings: dict[tuple[SourcePosition, str], ScriptProblem] = field(default_factory=dict)

    def warn(self, position: SourcePosition, problem_text: str, warning_kind: str = "") -> None:
        """Add a warning, once per position and kind."""
        self.warnings.setdefault(
            (position, warning_kind or problem_text), ScriptProblem(*position, problem_text)
        )


def require_string_arguments_without_variables(call: SieveCall, argument_name: str) -> list[str]:
    """Return the strings of an argument. Raises NoFilterEquivalent if it has variables."""
    value = call.arguments.get(argument_name, ())
    listed = value if isinstance(value, tuple) else (value,)
    strings = [value for value in listed if isinstance(value, str)]
    if len(strings) < len(listed):
        raise NoFilterEquivalent(call.position, "Filters have no variables.")
    return strings


def require_allowed_arguments(call: SieveCall, allowed_names: Iterable[str]) -> None:
    """Raise NoFilterEquivalent if a call has arguments that filters don't have."""
    for name in call.arguments:
        if name not in allowed_names:
            raise NoFilterEquivalent(
                call.position, f"Filters have no equivalent of {call.name} with :{name}."
            )


def query_from_test_or_add_problem(test: SieveCall, problems: ImportProblems) -> QueryForm:
    """Return the test as a query. Returns {} and adds an error if there is no equivalent."""
    try:
        return _CONVERTERS.get(test.name, _unknown_test)(test, problems)
    except NoFilterEquivalent as fault:
        problems.errors.append(fault.problem)
        return {}


def query_requiring_all(queries: Iterable[QueryForm]) -> QueryForm:
    """Return one query that holds if all of these hold.

    A field that occurs twice moves into `all`, in the order that filter_compiler writes.
    """
    combined_query: QueryForm = {}
    for query in queries:
        twice = (combined_query.keys() & query.keys()) - {"all", "not"}
        if twice == {"any"}:
            combined_query["all"] = [
                *combined_query.get("all", ()),
                {"any": combined_query.pop("any")},
            ]
        elif twice:
            combined_query["all"] = [*combined_query.get("all", ()), query]
            continue
        for name, value in query.items():
            combined_query[name] = (
                [*combined_query.get(name, ()), *value] if name in ("all", "not") else value
            )
    return combined_query


def _any_query(queries: Sequence[QueryForm]) -> QueryForm:
    """Return a query that holds if one of these holds."""
    return queries[0] if len(queries) == 1 else {"any": list(queries)}


def _unknown_test(test: SieveCall, _problems: ImportProblems) -> QueryForm:
    """Raise NoFilterEquivalent for a test without equivalent."""
    raise NoFilterEquivalent(test.position, f"Filters have no equivalent of the test {test.name}.")


def _query_of_true(_test: SieveCall, _problems: ImportProblems) -> QueryForm:
    return {}


def _query_of_false(_test: SieveCall, _problems: ImportProblems) -> QueryForm:
    return NEVER_TRUE


def _query_of_allof(test: SieveCall, problems: ImportProblems) -> QueryForm:
    return query_requiring_all(
        [query_from_test_or_add_problem(test, problems) for test in test.tests]
    )


def _query_of_anyof(test: SieveCall, problems: ImportProblems) -> QueryForm:
    return _any_query([query_from_test_or_add_problem(test, problems) for test in test.tests])


def _query_of_not(test: SieveCall, problems: ImportProblems) -> QueryForm:
    inner = query_from_test_or_add_problem(test.tests[0], problems)
    if list(inner) == ["hasAttachment"]:
        return {"hasAttachment": not inner["hasAttachment"]}
    return {"not": [inner]}


def _query_of_hasattachment(_test: SieveCall, _problems: ImportProblems) -> QueryForm:
    return {"hasAttachment": True}


def _query_of_size(test: SieveCall, _problems: ImportProblems) -> QueryForm:
    over, limit = test.chosen_tag("relation", "over") == "over", test.number_argument("limit")
    if not limit:
        return {} if over else NEVER_TRUE
    return {"larger" if over else "smaller": limit}


def _query_of_exists(test: SieveCall, _problems: ImportProblems) -> QueryForm:
    require_allowed_arguments(test, ("names",))
    return query_requiring_all(
        [
            _header_exists_query(name)
            for name in require_string_arguments_without_variables(test, "names")
        ]
    )


def _header_exists_query(header_name: str) -> QueryForm:
    """Return the query for an existing header field."""
    return {"header": {"key": header_name, "value": None}}


def _query_of_header(test: SieveCall, problems: ImportProblems) -> QueryForm:
    require_allowed_arguments(test, _COMPARISON_ARGUMENTS)
    kind, keys = _match_type_and_keys(test, problems)
    names = require_string_arguments_without_variables(test, "names")
    return _any_query([query for key in keys for query in _header_queries(names, kind, key)])


def _header_queries(header_names: Sequence[str], match_type: str, key: str) -> list[QueryForm]:
    """Return queries of which one holds if one of the header fields matches the key."""
    part = _substring_of_key_or_none(match_type, key)
    if part is None:
        return [_regex_query(name, _regex_of_key(match_type, key)) for name in header_names]
    if not part:
        return [_header_exists_query(name) for name in header_names]
    left = {name.lower() for name in header_names}
    queries: list[QueryForm] = []
    for name, fields in HEADER_FIELDS.items():
        if left.issuperset(fields):
            queries.append({name: part})
            left.difference_update(fields)
    others = dict.fromkeys(name for name in header_names if name.lower() in left)
    return [*queries, *({"header": {"key": name, "value": part}} for name in others)]


def _query_of_body(test: SieveCall, problems: ImportProblems) -> QueryForm:
    """Return a body test as a query. Raises NoFilterEquivalent; `problems` gets warnings."""
    require_allowed_arguments(test, _BODY_ARGUMENTS)
    kind, keys = _match_type_and_keys(test, problems)
    return _any_query([_body_query(test, kind, key) for key in keys])


def _body_query(test: SieveCall, match_type: str, key: str) -> QueryForm:
    """Return the query for a key in the text."""
    part = _substring_of_key_or_none(match_type, key)
    if part is None:
        return _regex_query(None, _regex_of_key(match_type, key))
    if not part:
        raise NoFilterEquivalent(
            test.position, "Filters can't test whether the message has a text."
        )
    return {"text": part}


def _match_type_and_keys(test: SieveCall, problems: ImportProblems) -> tuple[str, list[str]]:
    """Return the match type and the keys of a test."""
    if test.chosen_tag("comparator", "") == NUMERIC:
        raise NoFilterEquivalent(test.position, "Filters can't compare numbers.")
    if test.chosen_tag("comparator", "") == OCTET:
        problems.warn(test.position, "Filters ignore case.")
    return test.chosen_tag("match", "is"), require_string_arguments_without_variables(test, "keys")


def _regex_query(header_name: str | None, pattern: str) -> QueryForm:
    """Return the query for a regular expression in a header field, or in the text."""
    return {"regex": {"key": header_name, "pattern": pattern}}


def _substring_of_key_or_none(match_type: str, key: str) -> str | None:
    """Return the substring that a key searches for: "" for anything, None for other keys."""
    if match_type == "contains":
        return key
    if match_type != "matches":
        return None
    tokens = _wildcard_tokens(key)
    if not tokens or tokens[0] != "*" or tokens[-1] != "*":
        return None
    inner = tokens[1:-1]
    if any(sign in ("*", "?") for sign in inner):
        return "" if set(tokens) == {"*"} else None
    part = "".join(sign[1:] for sign in inner)
    return part if part.split() or not part else None


def _wildcard_tokens(key: str) -> list[str]:
    """Split a `:matches` pattern into tokens: wildcards alone, other characters after `=`."""
    tokens: list[str] = []
    characters = iter(key)
    for sign in characters:
        if sign in ("*", "?"):
            tokens.append(sign)
        else:
            tokens.append("=" + (next(characters, sign) if sign == "\\" else sign))
    return tokens


def _escape_regex(text: str) -> str:
    """Escape a text for a regular expression."""
    return _REGEX_SPECIAL.sub(r"\\\1", text)


def _regex_of_key(match_type: str, key: str) -> str:
    """Return the regular expression that a key matches a whole value with."""
    if match_type == "regex":
        return key
    pattern = f"^{_unanchored_regex_of_key(match_type, key, '.')}$"
    return pattern.removeprefix("^.*").removesuffix(".*$") or pattern


def _unanchored_regex_of_key(match_type: str, key: str, character_class: str) -> str:
    """Return the regular expression of a key; a wildcard matches the character class."""
    if match_type == "matches":
        regex_by_wildcard = {"*": f"{character_class}*", "?": character_class}
        return "".join(
            regex_by_wildcard.get(token) or _escape_regex(token[1:])
            for token in _wildcard_tokens(key)
        )
    around = f"{character_class}*" if match_type == "contains" else ""
    return f"{around}{_escape_regex(key)}{around}"


def _query_of_address(test: SieveCall, problems: ImportProblems) -> QueryForm:
    require_allowed_arguments(test, _ADDRESS_ARGUMENTS)
    kind, keys = _match_type_and_keys(test, problems)
    names = require_string_arguments_without_variables(test, "names")
    part = test.chosen_tag("part", "all")
    if kind == "regex":
        raise NoFilterEquivalent(
            test.position, "Filters match regular expressions with whole fields only: use `header`."
        )
    if part == "all" and all(_substring_of_key_or_none(kind, key) is not None for key in keys):
        problems.warn(test.position, "Filters also test the display names of addresses.")
        return _any_query([query for key in keys for query in _header_queries(names, kind, key)])
    if "" in keys:
        raise NoFilterEquivalent(test.position, "Filters can't test for an empty address.")
    patterns = [_address_regex(part, kind, key) for key in keys]
    return _any_query(
        [
            _regex_query(name, _field_regex_of_address(name, pattern))
            for pattern in patterns
            for name in names
        ]
    )


def _address_regex(address_part: str, match_type: str, key: str) -> str:
    """Return the regular expression of an address of which this part matches."""
    if address_part == "all":
        return _unanchored_regex_of_key(match_type, key, _ADDRESS_CHARACTER)
    local_part_regex = _unanchored_regex_of_key(match_type, key, _LOCAL_CHARACTER)
    return (
        f"{local_part_regex}@{_LOCAL_CHARACTER}*"
        if address_part == "localpart"
        else f"{_ADDRESS_CHARACTER}*@{local_part_regex}"
    )


def _field_regex_of_address(header_name: str, address_pattern: str) -> str:
    """Return the regular expression of a header field with such an address, not as a name."""
    if header_name.lower() in _SINGLE_ADDRESS_FIELDS:
        return rf"(^|<)\s*{address_pattern}\s*>?$"
    return rf"(^|[<,:]\s*){address_pattern}\s*(>|,|;|$)"


_CONVERTERS: dict[str, Callable[[SieveCall, ImportProblems], QueryForm]] = {
    "address": _query_of_address,
    "allof": _query_of_allof,
    "anyof": _query_of_anyof,
    "body": _query_of_body,
    "exists": _query_of_exists,
    "false": _query_of_false,
    "hasattachment": _query_of_hasattachment,
    "header": _query_of_header,
    "not": _query_of_not,
    "size": _query_of_size,
    "true": _query_of_true,
}

"""Convert Sieve tests to filter queries, the reverse of filter_compiler.test_from_query.

A test that a query can't express is an error. A query that is only similar gives a warning: queries
ignore case, and search the whole header field for a part of an address.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mail.filters.filter_compiler import FIELDS
from mail.sieve import Problem
from mail.sieve.execution.comparators import NUMERIC, OCTET
from mail.sieve.execution.signatures import Call
from mail.sieve.source_position import Place

Query = dict[str, Any]

NEVER: Query = {"not": [{}]}
_COMPARED = {"match", "is", "contains", "matches", "regex", "comparator", "names", "keys"}
_BODY = _COMPARED | {"transform", "text"}
_ADDRESS = _COMPARED | {"part", "all", "localpart", "domain"}
_ALONE = {
    "from",
    "resent-from",
    "resent-sender",
    "return-path",
    "sender",
}  # fields with one address
_SPECIAL = re.compile(r"([\\^$.|?*+()\[\]{}])")
_ANY, _LOCAL = r"[^<>,;\s]", r"[^<>,;\s@]"  # one character of an address, of a local part or domain


class Unsaid(Exception):
    """Filters have no equivalent of a command or test at this position."""

    def __init__(self, place: Place, message: str) -> None:
        self.problem = Problem(*place, message)
        super().__init__(message)


@dataclass
class Told:
    """The errors and warnings of an import."""

    faults: list[Problem] = field(default_factory=list)
    warned: dict[tuple[Place, str], Problem] = field(default_factory=dict)

    def warn(self, place: Place, message: str, about: str = "") -> None:
        """Add a warning, once per position and kind."""
        self.warned.setdefault((place, about or message), Problem(*place, message))


def strings(call: Call, name: str) -> list[str]:
    """Return the strings of an argument. Raises NoFilterEquivalent if it has variables."""
    value = call.values.get(name, ())
    listed = value if isinstance(value, tuple) else (value,)
    found = [one for one in listed if isinstance(one, str)]
    if len(found) < len(listed):
        raise Unsaid(call.place, "filters have no variables")
    return found


def known(call: Call, tags: Iterable[str]) -> None:
    """Raise NoFilterEquivalent if a call has arguments that filters don't have."""
    for name in call.values:
        if name not in tags:
            raise Unsaid(call.place, f"filters have no {call.name} with :{name}")


def query_of(test: Call, told: Told) -> Query:
    """Return the test as a query. Returns {} and adds an error if there is no equivalent."""
    try:
        return _TESTS.get(test.name, _unknown)(test, told)
    except Unsaid as fault:
        told.faults.append(fault.problem)
        return {}


def merged(queries: Iterable[Query]) -> Query:
    """Return one query that holds if all of these hold.

    A field that occurs twice moves into `all`, in the order that filter_compiler writes.
    """
    found: Query = {}
    for one in queries:
        twice = (found.keys() & one.keys()) - {"all", "not"}
        if twice == {"any"}:
            found["all"] = [*found.get("all", ()), {"any": found.pop("any")}]
        elif twice:
            found["all"] = [*found.get("all", ()), one]
            continue
        for name, value in one.items():
            found[name] = [*found.get(name, ()), *value] if name in ("all", "not") else value
    return found


def _one_of(queries: Sequence[Query]) -> Query:
    """Return a query that holds if one of these holds."""
    return queries[0] if len(queries) == 1 else {"any": list(queries)}


def _unknown(test: Call, _told: Told) -> Query:
    """Raise NoFilterEquivalent for a test without equivalent."""
    raise Unsaid(test.place, f"filters have no test {test.name}")


def _true(_test: Call, _told: Told) -> Query:
    return {}


def _false(_test: Call, _told: Told) -> Query:
    return NEVER


def _allof(test: Call, told: Told) -> Query:
    return merged([query_of(one, told) for one in test.tests])


def _anyof(test: Call, told: Told) -> Query:
    return _one_of([query_of(one, told) for one in test.tests])


def _not(test: Call, told: Told) -> Query:
    inner = query_of(test.tests[0], told)
    if list(inner) == ["hasAttachment"]:
        return {"hasAttachment": not inner["hasAttachment"]}
    return {"not": [inner]}


def _hasattachment(_test: Call, _told: Told) -> Query:
    return {"hasAttachment": True}


def _size(test: Call, _told: Told) -> Query:
    over, limit = test.chosen("relation", "over") == "over", test.number("limit")
    if not limit:
        return {} if over else NEVER
    return {"size": limit if over else -limit}


def _exists(test: Call, _told: Told) -> Query:
    known(test, ("names",))
    return merged([_there(name) for name in strings(test, "names")])


def _there(name: str) -> Query:
    """Return the query for an existing header field."""
    return {"header": {"key": name, "value": None}}


def _header(test: Call, told: Told) -> Query:
    known(test, _COMPARED)
    kind, keys = _compared(test, told)
    names = strings(test, "names")
    return _one_of([one for key in keys for one in _in_fields(names, kind, key)])


def _in_fields(names: Sequence[str], kind: str, key: str) -> list[Query]:
    """Return queries of which one holds if one of the header fields matches the key."""
    part = _part_of(kind, key)
    if part is None:
        return [_expressed(name, _pattern(kind, key)) for name in names]
    if not part:
        return [_there(name) for name in names]
    left = {name.lower() for name in names}
    found: list[Query] = []
    for name, fields in FIELDS.items():
        if left.issuperset(fields):
            found.append({name: part})
            left.difference_update(fields)
    others = dict.fromkeys(name for name in names if name.lower() in left)
    return [*found, *({"header": {"key": name, "value": part}} for name in others)]


def _body(test: Call, told: Told) -> Query:
    known(test, _BODY)
    kind, keys = _compared(test, told)
    return _one_of([_in_body(test, kind, key) for key in keys])


def _in_body(test: Call, kind: str, key: str) -> Query:
    """Return the query for a key in the text."""
    part = _part_of(kind, key)
    if part is None:
        return _expressed(None, _pattern(kind, key))
    if not part:
        raise Unsaid(test.place, "filters do not ask whether there is a text")
    return {"text": part}


def _compared(test: Call, told: Told) -> tuple[str, list[str]]:
    """Return the match type and the keys of a test."""
    if test.chosen("comparator", "") == NUMERIC:
        raise Unsaid(test.place, "filters compare no numbers")
    if test.chosen("comparator", "") == OCTET:
        told.warn(test.place, "filters look in any case")
    return test.chosen("match", "is"), strings(test, "keys")


def _expressed(name: str | None, pattern: str) -> Query:
    """Return the query for a regular expression in a header field, or in the text."""
    return {"regex": {"key": name, "pattern": pattern}}


def _part_of(kind: str, key: str) -> str | None:
    """Return the substring that a key searches for: "" for anything, None for other keys."""
    if kind == "contains":
        return key
    if kind != "matches":
        return None
    signs = _wild(key)
    if not signs or signs[0] != "*" or signs[-1] != "*":
        return None
    inner = signs[1:-1]
    if any(sign in ("*", "?") for sign in inner):
        return "" if set(signs) == {"*"} else None
    part = "".join(sign[1:] for sign in inner)
    return part if part.split() or not part else None


def _wild(key: str) -> list[str]:
    """Split a `:matches` pattern into tokens: wildcards alone, other characters after `=`."""
    found: list[str] = []
    signs = iter(key)
    for sign in signs:
        if sign in ("*", "?"):
            found.append(sign)
        else:
            found.append("=" + (next(signs, sign) if sign == "\\" else sign))
    return found


def _escaped(text: str) -> str:
    """Escape a text for a regular expression."""
    return _SPECIAL.sub(r"\\\1", text)


def _pattern(kind: str, key: str) -> str:
    """Return the regular expression that a key matches a whole value with."""
    if kind == "regex":
        return key
    pattern = f"^{_inner(kind, key, '.')}$"
    return pattern.removeprefix("^.*").removesuffix(".*$") or pattern


def _inner(kind: str, key: str, sign: str) -> str:
    """Return the regular expression of a key; a wildcard matches the character class."""
    if kind == "matches":
        meant = {"*": f"{sign}*", "?": sign}
        return "".join(meant.get(one) or _escaped(one[1:]) for one in _wild(key))
    around = f"{sign}*" if kind == "contains" else ""
    return f"{around}{_escaped(key)}{around}"


def _address(test: Call, told: Told) -> Query:
    known(test, _ADDRESS)
    kind, keys = _compared(test, told)
    names, part = strings(test, "names"), test.chosen("part", "all")
    if kind == "regex":
        raise Unsaid(test.place, "filters try expressions on whole fields: write header")
    if part == "all" and all(_part_of(kind, key) is not None for key in keys):
        told.warn(test.place, "filters look into the names beside addresses, too")
        return _one_of([one for key in keys for one in _in_fields(names, kind, key)])
    if "" in keys:
        raise Unsaid(test.place, "filters do not look for an empty address")
    patterns = [_of_address(part, kind, key) for key in keys]
    return _one_of([_expressed(name, _in_field(name, one)) for one in patterns for name in names])


def _of_address(part: str, kind: str, key: str) -> str:
    """Return the regular expression of an address of which this part matches."""
    if part == "all":
        return _inner(kind, key, _ANY)
    half = _inner(kind, key, _LOCAL)
    return f"{half}@{_LOCAL}*" if part == "localpart" else f"{_ANY}*@{half}"


def _in_field(name: str, address: str) -> str:
    """Return the regular expression of a header field with such an address, not as a name."""
    if name.lower() in _ALONE:
        return rf"(^|<)\s*{address}\s*>?$"
    return rf"(^|[<,:]\s*){address}\s*(>|,|;|$)"


_TESTS: dict[str, Callable[[Call, Told], Query]] = {
    "address": _address,
    "allof": _allof,
    "anyof": _anyof,
    "body": _body,
    "exists": _exists,
    "false": _false,
    "hasattachment": _hasattachment,
    "header": _header,
    "not": _not,
    "size": _size,
    "true": _true,
}

"""Tests of Sieve as queries of filters: the way back from `mail.filters.condition`.

What a query cannot say is a fault. Where it says nearly the same there is a warning: queries know
no case, and look for a part of an address in the whole field.
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
_ALONE = {"from", "resent-from", "resent-sender", "return-path", "sender"}  # hold one address
_SPECIAL = re.compile(r"([\\^$.|?*+()\[\]{}])")
_ANY, _LOCAL = r"[^<>,;\s]", r"[^<>,;\s@]"  # signs of an address, and of half of one


class Unsaid(Exception):
    """No filter can say this, which stands at this place."""

    def __init__(self, place: Place, message: str) -> None:
        self.problem = Problem(*place, message)
        super().__init__(message)


@dataclass
class Told:
    """What is wrong with a script for filters, and what is worth knowing of it."""

    faults: list[Problem] = field(default_factory=list)
    warned: dict[tuple[Place, str], Problem] = field(default_factory=dict)

    def warn(self, place: Place, message: str, about: str = "") -> None:
        """Tell of a difference, at a place once of each kind."""
        self.warned.setdefault((place, about or message), Problem(*place, message))


def strings(call: Call, name: str) -> list[str]:
    """The strings of an argument; Unsaid where there are variables in them."""
    value = call.values.get(name, ())
    listed = value if isinstance(value, tuple) else (value,)
    found = [one for one in listed if isinstance(one, str)]
    if len(found) < len(listed):
        raise Unsaid(call.place, "filters have no variables")
    return found


def known(call: Call, tags: Iterable[str]) -> None:
    """Refuse tags that filters have no word for."""
    for name in call.values:
        if name not in tags:
            raise Unsaid(call.place, f"filters have no {call.name} with :{name}")


def query_of(test: Call, told: Told) -> Query:
    """The test as a query; of what cannot be one a fault is told, and it is {}."""
    try:
        return _TESTS.get(test.name, _unknown)(test, told)
    except Unsaid as fault:
        told.faults.append(fault.problem)
        return {}


def merged(queries: Iterable[Query]) -> Query:
    """One query that holds where all of these do.

    What it has twice stands in its `all`, in the order in which `mail.filters` writes it.
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
    return queries[0] if len(queries) == 1 else {"any": list(queries)}


def _unknown(test: Call, _told: Told) -> Query:
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
    return {"header": {"key": name, "value": None}}


# ---------------------------------------------------------------- texts


def _header(test: Call, told: Told) -> Query:
    known(test, _COMPARED)
    kind, keys = _compared(test, told)
    names = strings(test, "names")
    return _one_of([one for key in keys for one in _in_fields(names, kind, key)])


def _in_fields(names: Sequence[str], kind: str, key: str) -> list[Query]:
    """A key in one of these fields: one of these queries holds."""
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
    part = _part_of(kind, key)
    if part is None:
        return _expressed(None, _pattern(kind, key))
    if not part:
        raise Unsaid(test.place, "filters do not ask whether there is a text")
    return {"text": part}


def _compared(test: Call, told: Told) -> tuple[str, list[str]]:
    """In which way a test compares, and its keys."""
    if test.chosen("comparator", "") == NUMERIC:
        raise Unsaid(test.place, "filters compare no numbers")
    if test.chosen("comparator", "") == OCTET:
        told.warn(test.place, "filters look in any case")
    return test.chosen("match", "is"), strings(test, "keys")


def _expressed(name: str | None, pattern: str) -> Query:
    return {"regex": {"key": name, "pattern": pattern}}


def _part_of(kind: str, key: str) -> str | None:
    """What is looked for as a part, "" for anything; None where that is not all of it."""
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
    """A pattern of :matches, sign by sign: wildcards alone, others behind a mark."""
    found: list[str] = []
    signs = iter(key)
    for sign in signs:
        if sign in ("*", "?"):
            found.append(sign)
        else:
            found.append("=" + (next(signs, sign) if sign == "\\" else sign))
    return found


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _pattern(kind: str, key: str) -> str:
    """What fits a whole value, as an expression."""
    if kind == "regex":
        return key
    pattern = f"^{_inner(kind, key, '.')}$"
    return pattern.removeprefix("^.*").removesuffix(".*$") or pattern


def _inner(kind: str, key: str, sign: str) -> str:
    """What fits a key, where wildcards stand for such signs."""
    if kind == "matches":
        meant = {"*": f"{sign}*", "?": sign}
        return "".join(meant.get(one) or _escaped(one[1:]) for one in _wild(key))
    around = f"{sign}*" if kind == "contains" else ""
    return f"{around}{_escaped(key)}{around}"


# ---------------------------------------------------------------- addresses


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
    """An expression for an address of which this part fits."""
    if part == "all":
        return _inner(kind, key, _ANY)
    half = _inner(kind, key, _LOCAL)
    return f"{half}@{_LOCAL}*" if part == "localpart" else f"{_ANY}*@{half}"


def _in_field(name: str, address: str) -> str:
    """An expression for a field with such an address; what is but a name beside one is none."""
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

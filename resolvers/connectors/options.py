"""Custom options of connectors: a closed list, with the value each one takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mail.text.bounded_regex import Expression
from models import quantities
from models.errors import Invalid

PATH = ("customOptions",)
MOST = 50
LONGEST = 255  # characters


class OptionName(StrEnum):
    """The names of the custom options."""

    DRY = "DRY"
    INCLUDE = "INCLUDE"
    INCLUDE_MASK = "INCLUDE_MASK"
    EXCLUDE_MASK = "EXCLUDE_MASK"
    SUBSCRIBED = "SUBSCRIBED"
    MIN_AGE = "MIN_AGE"
    MIN_SIZE = "MIN_SIZE"
    MAX_SIZE = "MAX_SIZE"
    NO_FLAGS = "NO_FLAGS"
    IDLE = "IDLE"


MEANT: Mapping[OptionName, str] = {
    OptionName.DRY: "Nothing is stored, and nothing is deleted: every run is a trial.",
    OptionName.INCLUDE: "Only folders whose path this expression is found in.",
    OptionName.INCLUDE_MASK: "Only folders of this path, with * and ?; may be given several times.",
    OptionName.EXCLUDE_MASK: "No folders of this path, with * and ?; may be given several times.",
    OptionName.SUBSCRIBED: "Only folders that are subscribed to there.",
    OptionName.MIN_AGE: "Only what came there so long ago, such as P1D.",
    OptionName.MIN_SIZE: "Only messages of at least so many bytes.",
    OptionName.MAX_SIZE: "Only messages of at most so many bytes.",
    OptionName.NO_FLAGS: "What is seen, flagged or answered there later stays as it is here.",
    OptionName.IDLE: "Between two runs INBOX is listened to, and new mail comes at once (IMAP).",
}
SEVERAL = frozenset({OptionName.INCLUDE_MASK, OptionName.EXCLUDE_MASK})
OF_IMAP = frozenset({OptionName.IDLE, OptionName.SUBSCRIBED, OptionName.NO_FLAGS})


@dataclass(slots=True)
class Chosen:
    """The parsed custom options of a connector."""

    dry: bool = False
    include: Expression | None = None
    masks_in: list[str] = field(default_factory=list)
    masks_out: list[str] = field(default_factory=list)
    subscribed: bool = False
    min_age: float = 0.0  # seconds
    min_size: int = 0
    max_size: int | None = None
    no_flags: bool = False
    idle: bool = False


def chosen(stored: Sequence[Mapping[str, Any]]) -> Chosen:
    """Parse the stored options of a connector."""
    found = Chosen()
    for one in stored:
        name, value = OptionName(one["name"]), one.get("value") or ""
        read = READ[name](value)
        if name is OptionName.INCLUDE_MASK:
            found.masks_in.append(read)
        elif name is OptionName.EXCLUDE_MASK:
            found.masks_out.append(read)
        else:
            setattr(found, name.lower(), read)
    return found


def checked(given: Sequence[Mapping[str, Any]], *, pop: bool) -> list[dict[str, str]]:
    """Return the options in stored form. Raises Invalid."""
    if len(given) > MOST:
        raise Invalid(f"at most {MOST}", constraint="max", path=PATH)
    seen: set[OptionName] = set()
    for index, one in enumerate(given):
        name = OptionName(one["name"])
        if name in seen and name not in SEVERAL:
            raise Invalid(f"{name} is given twice", constraint="unique", path=PATH, index=index)
        seen.add(name)
        if pop and name in OF_IMAP:
            raise Invalid(f"{name} is of IMAP", constraint="unsupported", path=PATH, index=index)
        try:
            READ[name](one.get("value") or "")
        except ValueError as problem:
            text = f"{name}: {problem}"
            raise Invalid(text, constraint="value", path=PATH, index=index) from None
        except Invalid as problem:
            text = f"{name}: {problem.message}"
            raise Invalid(text, constraint=problem.constraint, path=PATH, index=index) from None
    return [{"name": OptionName(one["name"]), "value": one.get("value") or ""} for one in given]


def _yes(text: str) -> bool:
    if text.lower() not in ("", "true", "false"):
        raise ValueError("true or false; true, where it has no value")
    return text.lower() != "false"


def _mask(text: str) -> str:
    if not 0 < len(text) <= LONGEST or not text.isprintable():
        raise ValueError(f"1 to {LONGEST} characters")
    return text


def _age(text: str) -> float:
    seconds = quantities.duration(text).total_seconds()
    if seconds < 0:
        raise ValueError("0 or more")
    return seconds


READ: Mapping[OptionName, Callable[[str], Any]] = {
    OptionName.DRY: _yes,
    OptionName.INCLUDE: lambda text: Expression(text, slashes=False),
    OptionName.INCLUDE_MASK: _mask,
    OptionName.EXCLUDE_MASK: _mask,
    OptionName.SUBSCRIBED: _yes,
    OptionName.MIN_AGE: _age,
    OptionName.MIN_SIZE: quantities.size,
    OptionName.MAX_SIZE: quantities.size,
    OptionName.NO_FLAGS: _yes,
    OptionName.IDLE: _yes,
}

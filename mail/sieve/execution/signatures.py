"""Signatures of commands and tests, and compiled calls of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from mail.sieve.execution.string_templates import String
from mail.sieve.source_position import Place


class Kind(Enum):
    """The type of an argument. The values are used in error messages."""

    STRING = "a string"
    STRINGS = "strings"
    NUMBER = "a number"


class Tests(Enum):
    """How many tests a command or test contains."""

    NONE = auto()
    ONE = auto()
    MANY = auto()


@dataclass(frozen=True, slots=True)
class Option:
    """A tag. A call has at most one tag of a group."""

    name: str
    value: Kind | None = None  # of the argument after the tag
    group: str = ""  # "": no group
    extension: str | tuple[str, ...] | None = None  # required extensions; of several, all
    constant: bool = False  # its string can't contain variables


@dataclass(frozen=True, slots=True)
class Given:
    """An argument without a tag."""

    name: str
    kind: Kind = Kind.STRING
    optional: bool = False
    constant: bool = False


Value = String | tuple[String, ...] | int | bool


@dataclass(frozen=True, slots=True)
class Call:
    """A compiled command or test. Tags are listed by name and by group."""

    signature: "Signature"
    place: Place
    values: Mapping[str, Value] = field(default_factory=dict)
    tests: tuple["Call", ...] = ()
    blocks: tuple[tuple["Call", ...], ...] = ()  # of `if`: one for each test, then that of else
    # Values computed of arguments without variables; they are the same in each run.
    worked: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the command or test."""
        return self.signature.name

    def has(self, name: str) -> bool:
        """True if the argument or tag is present."""
        return name in self.values

    def string(self, name: str) -> String:
        """Return a string argument, "" if it is missing. Raises TypeError for another type."""
        value = self.values.get(name, "")
        if isinstance(value, int | tuple):
            raise TypeError(name)
        return value

    def strings(self, name: str) -> tuple[String, ...]:
        """Return a string list, () if it is missing. Raises TypeError for another type."""
        value = self.values.get(name, ())
        if not isinstance(value, tuple):
            raise TypeError(name)
        return value

    def number(self, name: str, default: int = 0) -> int:
        """Return a number argument or the default. Raises TypeError for another type."""
        value = self.values.get(name, default)
        if not isinstance(value, int):
            raise TypeError(name)
        return value

    def chosen(self, group: str, default: str) -> str:
        """Return the tag of a group that is present, or the default."""
        value = self.values.get(group, default)
        if not isinstance(value, str):
            raise TypeError(group)
        return value


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a command or test, and the function that executes it."""

    name: str
    run: Callable[[Any, Call], bool | None]  # Any: interpreter.Run, which is built on this module
    given: tuple[Given, ...] = ()
    options: tuple[Option, ...] = ()
    extension: str | tuple[str, ...] | None = None  # required extensions; of several, all
    tests: Tests = Tests.NONE
    block: bool = False
    check: Callable[[Call], str | None] | None = (
        None  # returns what is wrong with the arguments, or None
    )


@dataclass(frozen=True, slots=True)
class Include:
    """A script that another one includes (RFC 6609)."""

    location: str  # "personal" or "global"
    name: str


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled script."""

    calls: tuple[Call, ...]
    extensions: frozenset[str]  # enabled extensions
    includes: tuple[Include, ...] = ()


MATCH = (
    Option("is", group="match"),
    Option("contains", group="match"),
    Option("matches", group="match"),
    Option("regex", group="match", extension="regex"),
    Option("value", Kind.STRING, group="match", extension="relational", constant=True),
    Option("count", Kind.STRING, group="match", extension="relational", constant=True),
    Option("comparator", Kind.STRING, constant=True),
)
INDEX = (
    Option("index", Kind.NUMBER, extension="index"),
    Option("last", extension="index"),
)
ADDRESS_PART = (
    Option("all", group="part"),
    Option("localpart", group="part"),
    Option("domain", group="part"),
    Option("user", group="part", extension="subaddress"),
    Option("detail", group="part", extension="subaddress"),
)

"""What commands and tests take, and how they stand in a script that is ready to run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from mail.sieve.execution.string_templates import String
from mail.sieve.source_position import Place


class Kind(Enum):
    """What an argument is."""

    STRING = "a string"
    STRINGS = "strings"
    NUMBER = "a number"


class Tests(Enum):
    """How many tests a command or a test is made of."""

    NONE = auto()
    ONE = auto()
    MANY = auto()


@dataclass(frozen=True, slots=True)
class Option:
    """A tag; of one group a call has only one."""

    name: str
    value: Kind | None = None  # of what follows it
    group: str = ""  # "": one of its own
    extension: str | tuple[str, ...] | None = None  # that it needs; of several, all
    constant: bool = False  # its string may hold no variables


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
    """A command or test with its arguments by their names; tags by theirs and by their group's."""

    signature: "Signature"
    place: Place
    values: Mapping[str, Value] = field(default_factory=dict)
    tests: tuple["Call", ...] = ()
    blocks: tuple[tuple["Call", ...], ...] = ()  # of `if`: one for each test, and the last for else
    # What was worked out of arguments without variables: it is the same in each run.
    worked: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """What it is called in a script."""
        return self.signature.name

    def has(self, name: str) -> bool:
        """Whether the argument was given."""
        return name in self.values

    def string(self, name: str) -> String:
        """A string; "" where it was not given."""
        value = self.values.get(name, "")
        if isinstance(value, int | tuple):
            raise TypeError(name)
        return value

    def strings(self, name: str) -> tuple[String, ...]:
        """Strings; () where they were not given."""
        value = self.values.get(name, ())
        if not isinstance(value, tuple):
            raise TypeError(name)
        return value

    def number(self, name: str, default: int = 0) -> int:
        """A number."""
        value = self.values.get(name, default)
        if not isinstance(value, int):
            raise TypeError(name)
        return value

    def chosen(self, group: str, default: str) -> str:
        """Which tag of a group was given."""
        value = self.values.get(group, default)
        if not isinstance(value, str):
            raise TypeError(group)
        return value


@dataclass(frozen=True, slots=True)
class Signature:
    """What a command or a test takes, and what it does."""

    name: str
    run: Callable[[Any, Call], bool | None]  # Any: interpreter.Run, which is built on this module
    given: tuple[Given, ...] = ()
    options: tuple[Option, ...] = ()
    extension: str | tuple[str, ...] | None = None  # that it needs; of several, all
    tests: Tests = Tests.NONE
    block: bool = False
    check: Callable[[Call], str | None] | None = None  # says what is wrong with the arguments


@dataclass(frozen=True, slots=True)
class Include:
    """A script that another includes (RFC 6609)."""

    location: str  # "personal" or "global"
    name: str


@dataclass(frozen=True, slots=True)
class Program:
    """A script that compiled."""

    calls: tuple[Call, ...]
    extensions: frozenset[str]  # that it may use
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

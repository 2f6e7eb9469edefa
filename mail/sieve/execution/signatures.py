"""Signatures of commands and tests, and compiled calls of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from mail.sieve.execution.string_templates import SieveString
from mail.sieve.source_position import SourcePosition


class ArgumentType(Enum):
    """The type of an argument. The values are used in error messages."""

    STRING = "a string"
    STRINGS = "strings"
    NUMBER = "a number"


class TestCount(Enum):
    """How many tests a command or test contains."""

    NONE = auto()
    ONE = auto()
    MANY = auto()


@dataclass(frozen=True, slots=True)
class TagOption:
    """A tag. A call has at most one tag of a group."""

    name: str
    value_type: ArgumentType | None = None  # of the argument after the tag
    group: str = ""  # "": no group
    extension: str | tuple[str, ...] | None = None  # required extensions; of several, all
    is_constant: bool = False  # its string can't contain variables


@dataclass(frozen=True, slots=True)
class PositionalArgument:
    """An argument without a tag."""

    name: str
    argument_type: ArgumentType = ArgumentType.STRING
    is_optional: bool = False
    is_constant: bool = False


ArgumentValue = SieveString | tuple[SieveString, ...] | int | bool


@dataclass(frozen=True, slots=True)
class SieveCall:
    """A compiled command or test. Tags are listed by name and by group."""

    signature: "CallSignature"
    position: SourcePosition
    arguments: Mapping[str, ArgumentValue] = field(default_factory=dict)
    tests: tuple["SieveCall", ...] = ()
    blocks: tuple[
        tuple["SieveCall", ...], ...
    ] = ()  # of `if`: one for each test, then that of else
    # Values computed of arguments without variables; they are the same in each run.
    cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the command or test."""
        return self.signature.name

    def has_argument(self, name: str) -> bool:
        """True if the argument or tag is present."""
        return name in self.arguments

    def string_argument(self, name: str) -> SieveString:
        """Return a string argument, "" if it is missing. Raises TypeError for another type."""
        value = self.arguments.get(name, "")
        if isinstance(value, int | tuple):
            raise TypeError(name)
        return value

    def strings_argument(self, name: str) -> tuple[SieveString, ...]:
        """Return a string list, () if it is missing. Raises TypeError for another type."""
        value = self.arguments.get(name, ())
        if not isinstance(value, tuple):
            raise TypeError(name)
        return value

    def number_argument(self, name: str, default: int = 0) -> int:
        """Return a number argument or the default. Raises TypeError for another type."""
        value = self.arguments.get(name, default)
        if not isinstance(value, int):
            raise TypeError(name)
        return value

    def chosen_tag(self, group: str, default: str) -> str:
        """Return the tag of a group that is present, or the default."""
        value = self.arguments.get(group, default)
        if not isinstance(value, str):
            raise TypeError(group)
        return value


@dataclass(frozen=True, slots=True)
class CallSignature:
    """The arguments of a command or test, and the function that executes it."""

    name: str
    # Any: interpreter.Run, which is built on this module
    execute: Callable[[Any, SieveCall], bool | None]
    positional: tuple[PositionalArgument, ...] = ()
    options: tuple[TagOption, ...] = ()
    extension: str | tuple[str, ...] | None = None  # required extensions; of several, all
    test_count: TestCount = TestCount.NONE
    has_block: bool = False
    find_problem: Callable[[SieveCall], str | None] | None = (
        None  # returns what is wrong with the arguments, or None
    )


@dataclass(frozen=True, slots=True)
class IncludedScript:
    """A script that another one includes (RFC 6609)."""

    location: str  # "personal" or "global"
    name: str


@dataclass(frozen=True, slots=True)
class SieveProgram:
    """A compiled script."""

    calls: tuple[SieveCall, ...]
    extensions: frozenset[str]  # enabled extensions
    includes: tuple[IncludedScript, ...] = ()


MATCH_OPTIONS = (
    TagOption("is", group="match"),
    TagOption("contains", group="match"),
    TagOption("matches", group="match"),
    TagOption("regex", group="match", extension="regex"),
    TagOption(
        "value", ArgumentType.STRING, group="match", extension="relational", is_constant=True
    ),
    TagOption(
        "count", ArgumentType.STRING, group="match", extension="relational", is_constant=True
    ),
    TagOption("comparator", ArgumentType.STRING, is_constant=True),
)
INDEX_OPTIONS = (
    TagOption("index", ArgumentType.NUMBER, extension="index"),
    TagOption("last", extension="index"),
)
ADDRESS_PART_OPTIONS = (
    TagOption("all", group="part"),
    TagOption("localpart", group="part"),
    TagOption("domain", group="part"),
    TagOption("user", group="part", extension="subaddress"),
    TagOption("detail", group="part", extension="subaddress"),
)

"""The syntax tree of a script (RFC 5228, section 8.2), as parsed or built by code.

A tree doesn't say what a command means. All names are in lower case, tags without colon; strings
are unquoted and contain no NUL. Positions don't count when nodes are compared.

    CommandNode("if", tests=(TestNode("true"),), block=(CommandNode("keep"),))
"""

from dataclasses import dataclass, field

from mail.sieve.source_position import START, Place


@dataclass(frozen=True, slots=True)
class Text:
    """A string."""

    value: str
    place: Place = field(default=START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Texts:
    """A list of strings, never empty."""

    values: tuple[Text, ...]
    place: Place = field(default=START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its quantifier (K, M, G) applied; not negative."""

    value: int
    place: Place = field(default=START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag, such as "contains". The next argument can belong to it."""

    name: str
    place: Place = field(default=START, compare=False, repr=False)


Argument = Text | Texts | Number | Tag


@dataclass(frozen=True, slots=True)
class Test:
    """A test with its arguments, then its inner tests."""

    name: str
    arguments: tuple[Argument, ...] = ()
    tests: tuple["Test", ...] = ()
    place: Place = field(default=START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Command:
    """A command; `block` is None if it ends with a semicolon."""

    name: str
    arguments: tuple[Argument, ...] = ()
    tests: tuple[Test, ...] = ()
    block: tuple["Command", ...] | None = None
    place: Place = field(default=START, compare=False, repr=False)


Tree = tuple[Command, ...]


def texts(*values: str) -> Texts:
    """Return a list of strings, for code that builds trees."""
    return Texts(tuple(Text(value) for value in values))

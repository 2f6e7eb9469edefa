"""A script as a tree (RFC 5228, section 8.2), as the parser reads it and as code may build it.

A tree says nothing of what a command means. All names are in lower case, tags without their
colon; texts are as they are meant, without quotes and escapes, and hold no NUL. Where a node
stood in a text makes no difference to whether it equals another.

    Command("if", tests=(Test("true"),), block=(Command("fileinto", (Text("A"),)),))
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
    """A list of strings; never an empty one."""

    values: tuple[Text, ...]
    place: Place = field(default=START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Number:
    """A number from 0 on, its quantifier multiplied in."""

    value: int
    place: Place = field(default=START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag, such as "contains"; what follows it may belong to it."""

    name: str
    place: Place = field(default=START, compare=False, repr=False)


Argument = Text | Texts | Number | Tag


@dataclass(frozen=True, slots=True)
class Test:
    """A test with its arguments, then the tests that it is made of."""

    name: str
    arguments: tuple[Argument, ...] = ()
    tests: tuple["Test", ...] = ()
    place: Place = field(default=START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Command:
    """A command; `block` is None where it ends in a semicolon."""

    name: str
    arguments: tuple[Argument, ...] = ()
    tests: tuple[Test, ...] = ()
    block: tuple["Command", ...] | None = None
    place: Place = field(default=START, compare=False, repr=False)


Tree = tuple[Command, ...]


def texts(*values: str) -> Texts:
    """A list of strings, for code that builds trees."""
    return Texts(tuple(Text(value) for value in values))

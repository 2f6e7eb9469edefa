"""The syntax tree of a script (RFC 5228, section 8.2), as parsed or built by code.

A tree doesn't say what a command means. All names are in lower case, tags without colon; strings
are unquoted and contain no NUL. Positions don't count when nodes are compared.

    CommandNode("if", tests=(TestNode("true"),), block=(CommandNode("keep"),))
"""

from dataclasses import dataclass, field

from mail.sieve.source_position import SCRIPT_START, SourcePosition


@dataclass(frozen=True, slots=True)
class StringNode:
    """A string."""

    value: str
    position: SourcePosition = field(default=SCRIPT_START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class StringListNode:
    """A list of strings, never empty."""

    values: tuple[StringNode, ...]
    position: SourcePosition = field(default=SCRIPT_START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NumberNode:
    """A number with its quantifier (K, M, G) applied; not negative."""

    value: int
    position: SourcePosition = field(default=SCRIPT_START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TagNode:
    """A tag, such as "contains". The next argument can belong to it."""

    name: str
    position: SourcePosition = field(default=SCRIPT_START, compare=False, repr=False)


Argument = StringNode | StringListNode | NumberNode | TagNode


@dataclass(frozen=True, slots=True)
class TestNode:
    """A test with its arguments, then its inner tests."""

    name: str
    arguments: tuple[Argument, ...] = ()
    tests: tuple["TestNode", ...] = ()
    position: SourcePosition = field(default=SCRIPT_START, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class CommandNode:
    """A command; `block` is None if it ends with a semicolon."""

    name: str
    arguments: tuple[Argument, ...] = ()
    tests: tuple[TestNode, ...] = ()
    block: tuple["CommandNode", ...] | None = None
    position: SourcePosition = field(default=SCRIPT_START, compare=False, repr=False)


Tree = tuple[CommandNode, ...]


def string_list(*values: str) -> StringListNode:
    """Return a list of strings, for code that builds trees."""
    return StringListNode(tuple(StringNode(value) for value in values))

"""The names that the resolver of a field uses, with those of the functions that it calls."""

from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

PACKAGES = ("graph", "resolvers", "mail", "models")


def names_used_by_resolver(resolver: Callable[..., Any], view: type) -> frozenset[str]:
    """Return the names of globals and attributes that a resolver of a view uses.

    Names of functions that it calls, directly or not, are included. A function of the project
    counts as called if its name is used, so the result can have names of other functions.
    """
    names, pending, visited = set[str](), [resolver], set[FunctionType]()
    while pending:
        function = _plain_function_or_none(pending.pop())
        if function is None or function in visited:
            continue
        visited.add(function)
        own_names = {name for code in _nested_codes(function.__code__) for name in code.co_names}
        names |= own_names
        pending += _named_functions(function, own_names, view)
    return frozenset(names)


def _plain_function_or_none(value: Any) -> FunctionType | None:
    """Return the function of the project behind decorators and partial calls, or None."""
    while not isinstance(value, FunctionType) or hasattr(value, "__wrapped__"):
        if isinstance(value, partial):
            value = value.func
        elif hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        elif isinstance(value, staticmethod | classmethod):
            value = value.__func__
        else:
            return None
    return value if value.__module__.split(".")[0] in PACKAGES else None


def _nested_codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested_codes(constant)


def _named_functions(function: FunctionType, names: set[str], view: type) -> Iterator[Any]:
    """Yield the values that a function can name: globals, and members of modules and classes."""
    for owner in view.__mro__:
        yield from (vars(owner)[name] for name in names & vars(owner).keys())
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        yield value
        if isinstance(value, ModuleType | type) and _belongs_to_project(value):
            members = vars(value)
            yield from (members[member] for member in (names | {"__init__"}) & members.keys())


def _belongs_to_project(value: ModuleType | type) -> bool:
    module = value.__name__ if isinstance(value, ModuleType) else value.__module__
    return module.split(".")[0] in PACKAGES

"""The functions that a root field can run, or those that a block of lines can run."""

import ast
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product

from tests.support.reference.errors.code_index import (
    Definition,
    FunctionNode,
    Reference,
    code_index,
    references_of,
)
from tests.support.reference.errors.error_site import ErrorSite
from tests.support.reference.errors.function_syntax import argument_of_call, parameter_names


@dataclass(frozen=True, slots=True)
class Caller:
    """A function with a call, and the callers above it."""

    definition: Definition
    call: ast.Call


@dataclass(frozen=True, slots=True)
class CodeLines:
    """Lines of a function, such as the body of a `try` statement."""

    function: str
    first: int
    last: int

    @classmethod
    def of_body(cls, function: str, body: list[ast.stmt]) -> "CodeLines":
        """Return the lines of a body of statements."""
        return cls(function, body[0].lineno, body[-1].end_lineno or body[-1].lineno)

    def has_line(self, line: int) -> bool:
        """True for a line of the block."""
        return self.first <= line <= self.last


@dataclass(slots=True)
class Reach:
    """The functions that a root field or a block can run, each with the calls of it."""

    names: list[str] = field(default_factory=list)
    callers: dict[str, list[Caller]] = field(default_factory=dict)
    # By function: the classes of its errors that every caller catches and drops.
    handled: dict[str, frozenset[str]] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    blocks: frozenset[CodeLines] = frozenset()  # whose reach this is, with those that contain them
    # By block: its errors. A reach shares them with the reaches of blocks in its functions.
    errors_by_block: dict[CodeLines, set[ErrorSite]] = field(default_factory=dict)


def reach_of(*names: str, without: Collection[str] = ()) -> Reach:
    """Follow all references from these functions, except those to the functions `without`."""
    reach = Reach(without=frozenset(without))
    _add_functions(reach, names)
    return reach


def reach_of_block(outer: Reach, block: CodeLines) -> Reach:
    """Follow all references from a block of a function in the reach `outer`.

    A function that the block doesn't call has the callers of `outer`.
    """
    reach = Reach(
        without=outer.without,
        blocks=outer.blocks | {block},
        errors_by_block=outer.errors_by_block,
    )
    definition = code_index().definitions[block.function]
    references = list(references_in_block(block))
    for reference in references:
        _add_caller(reach, definition, reference)
    targets = [reference.target for reference in references]
    targets += _functions_in_called_parameters(outer, definition, block)
    _add_functions(reach, [one for one in dict.fromkeys(targets) if one not in outer.without])
    for name, callers in outer.callers.items():
        reach.callers.setdefault(name, callers)
    return reach


def _functions_in_called_parameters(
    outer: Reach, definition: Definition, block: CodeLines
) -> Iterator[str]:
    """Yield the functions that callers pass for the parameters that a block calls."""
    node = definition.node
    names = parameter_names(node) if isinstance(node, FunctionNode) else []
    called_names = {
        call.func.id
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in names
        and block.has_line(call.lineno)
    }
    for caller, name in product(outer.callers.get(definition.name, ()), sorted(called_names)):
        argument = argument_of_call(definition, caller.call, name)
        for reference in references_of(caller.definition.name) if argument else ():
            if reference.node is argument:
                yield reference.target


def references_in_block(block: CodeLines) -> Iterator[Reference]:
    """Yield the references of a function that are in a block."""
    for reference in references_of(block.function):
        if reference.node is not None and block.has_line(reference.node.lineno):
            yield reference


def _add_functions(reach: Reach, names: Iterable[str]) -> None:
    index, todo, followed = code_index(), deque(names), set[str]()
    reach.handled |= dict.fromkeys(todo, frozenset[str]())
    while todo:
        name = todo.popleft()
        is_first = name not in followed
        if is_first:
            followed.add(name)
            reach.names.append(name)
        for reference in references_of(name):
            if is_first:
                _add_caller(reach, index.definitions[name], reference)
            if reference.target not in reach.without and _add_handled(reach, name, reference):
                todo.append(reference.target)


def _add_handled(reach: Reach, name: str, reference: Reference) -> bool:
    """Add the error classes that this way to a function drops. True if the others drop more."""
    classes, before = reach.handled[name] | reference.handled, reach.handled.get(reference.target)
    reach.handled[reference.target] = classes if before is None else before & classes
    return before is None or not before <= classes


def _add_caller(reach: Reach, definition: Definition, reference: Reference) -> None:
    if reference.call is not None:
        callers = reach.callers.setdefault(reference.target, [])
        callers.append(Caller(definition, reference.call))

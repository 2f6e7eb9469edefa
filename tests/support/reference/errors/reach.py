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
    nodes_of,
)
from tests.support.reference.errors.constant_arguments import (
    ParameterValues,
    joined,
    passed_values,
    run_references,
)
from tests.support.reference.errors.error_classes import names_with_subclasses
from tests.support.reference.errors.error_site import ErrorSite
from tests.support.reference.errors.function_syntax import (
    argument_of_call,
    parameter_names,
)


@dataclass(frozen=True, slots=True)
class Caller:
    """A function with a call, and the error classes that never leave it or its callers."""

    definition: Definition
    call: ast.Call
    handled: frozenset[str] = frozenset()


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
    # By function: the classes that are dropped around each use of it without arguments.
    handled_of_values: dict[str, list[frozenset[str]]] = field(default_factory=dict)
    # By function: the values that all calls pass. A block has those of the whole reach.
    parameters: dict[str, ParameterValues] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    blocks: frozenset[CodeLines] = frozenset()  # whose reach this is, with those that contain them
    # By block: its errors. A reach shares them with the reaches of blocks in its functions.
    errors_by_block: dict[CodeLines, set[ErrorSite]] = field(default_factory=dict)


def reach_of(*names: str, without: Collection[str] = ()) -> Reach:
    """Follow all references from these functions, except those to the functions `without`."""
    reach = Reach(without=frozenset(without), parameters={name: {} for name in names})
    reach.handled_of_values |= {name: [frozenset()] for name in names}
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
        parameters=outer.parameters,
    )
    definition = code_index().definitions[block.function]
    references = list(references_in_block(outer, block))
    for reference in references:
        _add_caller(reach, definition, reference, frozenset())  # the handlers are around the block
    passed_functions = list(_functions_in_called_parameters(outer, definition, block))
    reach.handled_of_values |= {name: [frozenset()] for name in passed_functions}
    targets = dict.fromkeys([*(one.target for one in references), *passed_functions])
    _add_functions(reach, [one for one in targets if one not in outer.without])
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
        for call in nodes_of(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in names
        and block.has_line(call.lineno)
    }
    for caller, name in product(outer.callers.get(definition.name, ()), sorted(called_names)):
        argument = argument_of_call(definition, caller.call, name)
        for reference in _run_references(outer, caller.definition.name) if argument else ():
            if reference.node is argument:
                yield reference.target


def references_in_block(reach: Reach, block: CodeLines) -> Iterator[Reference]:
    """Yield the references of a function that are in a block, and run."""
    for reference in _run_references(reach, block.function):
        if reference.node is not None and block.has_line(reference.node.lineno):
            yield reference


def _run_references(reach: Reach, name: str) -> Iterator[Reference]:
    return run_references(name, reach.parameters.get(name, {}))


def _add_functions(reach: Reach, names: Iterable[str]) -> None:
    index, todo, followed = code_index(), deque(names), dict[str, None]()
    reach.handled |= dict.fromkeys(todo, frozenset[str]())
    while todo:
        name = todo.popleft()
        followed[name] = None
        for reference in _run_references(reach, name):
            if reference.target not in reach.without and any(
                [
                    _add_handled(reach, name, reference),
                    _add_parameters(reach, index.definitions[name], reference),
                ]
            ):
                todo.append(reference.target)
    reach.names += followed
    for name in followed:
        for reference in _run_references(reach, name):
            handled = reach.handled[name] | names_with_subclasses(reference.handled)
            _add_caller(reach, index.definitions[name], reference, handled)


def _add_handled(reach: Reach, name: str, reference: Reference) -> bool:
    """Add the error classes that this way to a function drops. True if the others drop more."""
    dropped = reach.handled[name] | names_with_subclasses(reference.handled)
    before = reach.handled.get(reference.target)
    reach.handled[reference.target] = dropped if before is None else before & dropped
    return before is None or not before <= dropped


def _add_parameters(reach: Reach, caller: Definition, reference: Reference) -> bool:
    """Add the values that a call passes to a function. True if the others pass fewer."""
    parameters = reach.parameters.get(caller.name, {})
    passed = passed_values(caller, reference, parameters)
    before = reach.parameters.get(reference.target)
    reach.parameters[reference.target] = passed if before is None else joined(before, passed)
    return reach.parameters[reference.target] != before


def _add_caller(
    reach: Reach, definition: Definition, reference: Reference, handled: frozenset[str]
) -> None:
    if reference.call is not None:
        callers = reach.callers.setdefault(reference.target, [])
        callers.append(Caller(definition, reference.call, handled))
    else:
        reach.handled_of_values.setdefault(reference.target, []).append(handled)

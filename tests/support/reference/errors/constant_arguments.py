"""The values that all calls pass for a parameter, and the code of a function that they exclude.

Only functions at the top of a module are examined whose calls all show their arguments: a function
that some code passes as a value, or that has another decorator, can get any argument.
"""

import ast
import importlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from functools import cache
from itertools import product
from typing import Any

from tests.support.reference.errors.code_index import (
    Definition,
    FunctionNode,
    Reference,
    code_index,
    nodes_of,
    references_of,
    source_text,
)
from tests.support.reference.errors.function_syntax import (
    argument_of_call,
    parameter_names,
)

# Values with their class, since `True == 1` and members of a StrEnum equal their text.
Values = frozenset[tuple[type, Any]]
ParameterValues = Mapping[str, Values]  # without the parameters that can have any value
MAX_VALUES = 8  # a parameter with more can have any
TRANSPARENT_DECORATORS = ("asynccontextmanager", "contextmanager")


def joined(one: ParameterValues, other: ParameterValues) -> ParameterValues:
    """Return the values that parameters have in either of two calls."""
    unions = {name: one[name] | other[name] for name in one.keys() & other.keys()}
    return {name: values for name, values in unions.items() if len(values) <= MAX_VALUES}


def passed_values(
    caller: Definition, reference: Reference, parameters: ParameterValues
) -> ParameterValues:
    """Return the values that a reference passes to its target. The caller has `parameters`."""
    call, target = reference.call, code_index().definitions[reference.target]
    if call is None or not _shows_all_arguments(target):
        return {}
    assert isinstance(target.node, FunctionNode)
    if any(isinstance(one, ast.Starred) for one in call.args) or any(
        keyword.arg is None for keyword in call.keywords
    ):
        return {}
    given = {id(one) for one in (*call.args, *(keyword.value for keyword in call.keywords))}
    found = {}
    for name in parameter_names(target.node):
        argument = argument_of_call(target, call, name)
        if argument is not None:
            scope = (caller, parameters) if id(argument) in given else (target, {})
            values = _values(argument, *scope)
            if values is not None:
                found[name] = values
    return found


def run_references(name: str, parameters: ParameterValues) -> Iterator[Reference]:
    """Yield the references of a function, without those that never run with these parameters."""
    excluded = _excluded_nodes(name, frozenset(parameters.items())) if parameters else frozenset()
    for reference in references_of(name):
        if id(reference.node) not in excluded:
            yield reference


@cache
def _shows_all_arguments(definition: Definition) -> bool:
    """True for a function without class of which each use is a call of the function itself."""
    node, index = definition.node, code_index()
    return (
        isinstance(node, FunctionNode)
        and not definition.class_name
        and all(source_text(one) in TRANSPARENT_DECORATORS for one in node.decorator_list)
        and not any(
            index.resolve(f"{module}.{text}") == definition.name
            for module, texts in index.passed.get(node.name, {}).items()
            if module in index.modules
            for text in texts
        )
    )


@cache
def _excluded_nodes(name: str, items: frozenset[tuple[str, Values]]) -> frozenset[int]:
    """Return the ids of the nodes of a function that never run with these parameters."""
    definition = code_index().definitions[name]
    assert isinstance(definition.node, FunctionNode)
    excluded = set[int]()
    _exclude_from_body(definition.node.body, definition, dict(items), excluded)
    return frozenset(excluded)


def _exclude_from_body(
    body: Iterable[ast.stmt],
    definition: Definition,
    parameters: ParameterValues,
    excluded: set[int],
) -> bool:
    """Add the nodes of statements that never run. True if the body never runs to its end."""
    ends = False
    for statement in body:
        if ends:
            _exclude([statement], excluded)
            continue
        if isinstance(statement, ast.If):
            decision, branch_ends = _truth(statement.test, definition, parameters), []
            for part, result in ((statement.body, True), (statement.orelse, False)):
                if decision is (not result):
                    branch_ends.append(_exclude(part, excluded))
                else:
                    branch_ends.append(_exclude_from_body(part, definition, parameters, excluded))
            ends = all(branch_ends)
        else:
            for name in ("body", "orelse", "finalbody"):
                inner = getattr(statement, name, ())
                _exclude_from_body(inner, definition, parameters, excluded)
            for handler in getattr(statement, "handlers", ()):
                _exclude_from_body(handler.body, definition, parameters, excluded)
            ends = isinstance(statement, ast.Return | ast.Raise | ast.Continue | ast.Break)
        _exclude_from_expressions(statement, definition, parameters, excluded)
    return ends


def _exclude(nodes: Iterable[ast.AST], excluded: set[int]) -> bool:
    excluded.update(id(node) for part in nodes for node in nodes_of(part))
    return True


def _exclude_from_expressions(
    statement: ast.stmt, definition: Definition, parameters: ParameterValues, excluded: set[int]
) -> None:
    """Add the operands and branches of the expressions of a statement that never run."""
    for node in nodes_of(statement):
        if isinstance(node, ast.IfExp):
            decision = _truth(node.test, definition, parameters)
            if decision is not None:
                _exclude([node.orelse if decision else node.body], excluded)
        elif isinstance(node, ast.BoolOp):
            ending = isinstance(node.op, ast.Or)
            for index, operand in enumerate(node.values):
                if _truth(operand, definition, parameters) is ending:
                    _exclude(node.values[index + 1 :], excluded)


def _truth(test: ast.expr, definition: Definition, parameters: ParameterValues) -> bool | None:
    """Return whether a test is always true or always false; None if it is neither."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            truth = _truth(operand, definition, parameters)
            return None if truth is None else not truth
        case ast.BoolOp(op=operator, values=operands):
            ending = isinstance(operator, ast.Or)
            truths = {_truth(operand, definition, parameters) for operand in operands}
            if ending in truths:
                return ending
            return None if None in truths else not ending
    values = _values(test, definition, parameters)
    truths = {bool(value) for _, value in values or ()}
    return truths.pop() if len(truths) == 1 else None


def _values(node: ast.expr, definition: Definition, parameters: ParameterValues) -> Values | None:
    """Return the values that an expression can have; None for any value."""
    values = None
    match node:
        case ast.Constant(value=value):
            values = _constant(value)
        case ast.Name(id=name) if name not in _local_names(definition):
            is_constant = name.isupper() and name not in parameters
            constant = _constant(_module_value(definition, name)) if is_constant else None
            values = parameters.get(name, constant)
        case ast.Attribute(value=ast.Name(id=name), attr=member):
            owner = None if name in _local_names(definition) else _module_value(definition, name)
            if isinstance(owner, type) and issubclass(owner, Enum):
                values = _constant(getattr(owner, member, ...))
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            values = _comparison(left, operator, right, definition, parameters)
        case ast.UnaryOp(op=ast.Not()):
            truth = _truth(node, definition, parameters)
            values = None if truth is None else _constant(truth)
        case ast.IfExp(test=test, body=body, orelse=other):
            decision = _truth(test, definition, parameters)
            branches = [body] * (decision is not False) + [other] * (decision is not True)
            values = _union(_values(branch, definition, parameters) for branch in branches)
    return values


def _union(found: Iterable[Values | None]) -> Values | None:
    union = frozenset[tuple[type, Any]]()
    for values in found:
        if values is None:
            return None
        union |= values
    return union


def _constant(value: object) -> Values | None:
    is_comparable = value is None or isinstance(value, bool | str | Enum)
    return frozenset({(type(value), value)}) if is_comparable else None


def _comparison(
    left: ast.expr,
    operator: ast.cmpop,
    right: ast.expr,
    definition: Definition,
    parameters: ParameterValues,
) -> Values | None:
    """Return the possible results of a comparison."""
    lefts = _values(left, definition, parameters)
    if isinstance(operator, ast.In | ast.NotIn):
        members = _module_value(definition, ast.unparse(right))
        if lefts is None or not isinstance(members, frozenset | tuple):
            return None
        is_in = isinstance(operator, ast.In)
        return frozenset((bool, (value in members) is is_in) for _, value in lefts)
    rights = _values(right, definition, parameters)
    if lefts is None or rights is None:
        return None
    is_equal = isinstance(operator, ast.Is | ast.Eq)
    if not is_equal and not isinstance(operator, ast.IsNot | ast.NotEq):
        return None
    results = (
        (one == other) if isinstance(operator, ast.Eq | ast.NotEq) else (one is other)
        for (_, one), (_, other) in product(lefts, rights)
    )
    return frozenset((bool, result is is_equal) for result in results)


def _module_value(definition: Definition, name: str) -> Any:
    """Return a value at the top of the module of a definition, or `...` if it has none."""
    return getattr(importlib.import_module(definition.module), name, ...)


@cache
def _local_names(definition: Definition) -> Collection[str]:
    """Return the names that a function binds besides its parameters, also in inner functions."""
    own_arguments = {id(one) for one in _own_arguments(definition.node)}
    names = set[str]()
    for node in nodes_of(definition.node):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                names.add(name)
            case ast.arg(arg=name) if id(node) not in own_arguments:
                names.add(name)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                names.add(name)
            case ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
    return names


def _own_arguments(node: ast.AST) -> Iterator[ast.arg]:
    if isinstance(node, FunctionNode):
        arguments = node.args
        yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)

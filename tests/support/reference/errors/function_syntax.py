"""Parts of a function's syntax tree: parameters, assignments, exception handlers and conditions."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.support.reference.errors.code_index import (
    Definition,
    FunctionNode,
    code_index,
    nodes_of,
)

POSITION_NAMES = ("index", "nth", "number", "position")  # variables with a position in a list


@dataclass(frozen=True, slots=True)
class ExceptClause:
    """A `try` statement with one of its handlers."""

    statement: ast.Try
    handler: ast.ExceptHandler


@dataclass(frozen=True, slots=True)
class PathChange:
    """A place where a function gives an error that it caught another path."""

    error: ast.Name
    path: ast.expr


@cache
def path_changes_of(name: str) -> tuple[PathChange, ...]:
    """Return the places of a function that give an error another path.

    They are calls of `copy_with_path` and assignments to `path`.
    """
    changes = list[PathChange]()
    for node in nodes_of(code_index().definitions[name].node):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name() as error, attr="copy_with_path"), args=[path]
            ):
                changes.append(PathChange(error, path))
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                for target, value in zip(targets, values, strict=False):
                    changes += _assigned_path(target, value)
            case ast.Assign(targets=[target], value=value):
                changes += _assigned_path(target, value)
    return tuple(changes)


def _assigned_path(target: ast.expr, value: ast.expr) -> list[PathChange]:
    match target:
        case ast.Attribute(value=ast.Name(id=name) as error, attr="path") if name != "self":
            return [PathChange(error, value)]
    return []


def handler_of_variable(node: ast.AST, use: ast.Name) -> ExceptClause | None:
    """Return the innermost exception handler that binds a variable where it is used."""
    clauses = [
        ExceptClause(statement, handler)
        for statement in nodes_of(node)
        if isinstance(statement, ast.Try)
        for handler in statement.handlers
        if handler.name == use.id and handler.lineno <= use.lineno <= (handler.end_lineno or 0)
    ]
    return max(clauses, key=lambda clause: clause.handler.lineno, default=None)


def iterated_values(node: ast.AST, name: str) -> Iterator[ast.expr]:
    """Yield what loops and comprehensions with this variable iterate over."""
    for loop in nodes_of(node):
        match loop:
            case (
                ast.For(target=ast.Name(id=target), iter=value)
                | ast.AsyncFor(target=ast.Name(id=target), iter=value)
                | ast.comprehension(target=ast.Name(id=target), iter=value)
            ) if target == name:
                yield value


def iterated_items(node: ast.AST, name: str) -> Iterator[ast.expr]:
    """Yield the items of the tuples and lists that loops with this variable iterate over."""
    for value in iterated_values(node, name):
        if isinstance(value, ast.Tuple | ast.List):
            yield from value.elts


def returned_values(node: ast.AST) -> Iterator[ast.expr]:
    """Yield what a function returns, without its inner functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Return) and child.value is not None:
            yield child.value
        elif isinstance(child, ast.stmt) and not isinstance(child, FunctionNode):
            yield from returned_values(child)


def has_yield(statement: ast.Try) -> bool:
    """True if the body of a `try` statement yields, as in a function with @contextmanager."""
    return any(isinstance(node, ast.Yield) for part in statement.body for node in nodes_of(part))


@cache
def catches_errors_of_with_blocks(name: str) -> bool:
    """True for a context manager that catches errors of the blocks that it encloses."""
    node = code_index().definitions[name].node
    return any(has_yield(one) for one in nodes_of(node) if isinstance(one, ast.Try))


def with_block(node: ast.AST, call: ast.Call) -> ast.With | ast.AsyncWith | None:
    """Return the `with` statement whose context manager is a call, or None."""
    for statement in nodes_of(node):
        if isinstance(statement, ast.With | ast.AsyncWith) and any(
            item.context_expr is call for item in statement.items
        ):
            return statement
    return None


def conditions_of_line(node: ast.AST, line: int) -> Iterator[tuple[ast.expr, bool]]:
    """Yield the tests of `if` statements that decide whether a line runs, with that result."""
    for statement in nodes_of(node):
        if not isinstance(statement, ast.If):
            continue
        last = statement.body[-1]
        if statement.body[0].lineno <= line <= (last.end_lineno or 0):
            yield statement.test, True
        elif statement.lineno <= line <= (statement.end_lineno or 0) or (
            (statement.end_lineno or 0) < line
            and isinstance(last, ast.Return | ast.Raise | ast.Continue)
        ):
            yield statement.test, False


def parameter_names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the names of all parameters."""
    arguments = node.args
    return [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def positional_names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the names of the parameters that calls pass by position, without `self`."""
    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
    return names[1:] if names and names[0] in ("self", "cls") else names


def argument_of_call(definition: Definition, call: ast.Call, name: str) -> ast.expr | None:
    """Return what a call passes for a parameter: an argument, or the default."""
    node = definition.node
    assert isinstance(node, FunctionNode)
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    names = positional_names(node)
    if name in names and names.index(name) < len(call.args):
        return call.args[names.index(name)]
    defaults = dict(zip(reversed(names), reversed(node.args.defaults), strict=False))
    keyword_names = [kwonlyarg.arg for kwonlyarg in node.args.kwonlyargs]
    defaults |= {
        keyword_name: default
        for keyword_name, default in zip(keyword_names, node.args.kw_defaults, strict=True)
        if default is not None
    }
    return defaults.get(name)


def last_assignments(node: ast.AST, use: ast.Name) -> list[ast.Assign]:
    """Return the last assignment of a variable before a use, with those of its other branches."""
    assignments = _assignments(node, use.id)
    before = [assignment for assignment in assignments if assignment.lineno <= use.lineno]
    if not before:
        return []
    last = max(before, key=lambda one: one.lineno)
    for branching in nodes_of(node):  # from the outermost
        if isinstance(branching, ast.If | ast.Match | ast.Try):
            is_around_use = branching.lineno <= use.lineno <= (branching.end_lineno or 0)
            branches = _assignments(branching, use.id)
            if last in branches and not is_around_use:
                return branches
    return [last]


def _assignments(node: ast.AST, name: str) -> list[ast.Assign]:
    return [
        one
        for one in nodes_of(node)
        if isinstance(one, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in one.targets)
    ]


# Words of values whose names in the code would not be understood
VALUE_WORDS = {
    "allowed": "limit",
    "authmechanism": "the mechanisms",
    "domain admin": "role",
    "found": "the nodes",
    "graphql names": "fields",
    "impersonate": "permission",
    "large": "larger value",
    "left count": "number",
    "lower": "period",
    "max": "limit",
    "max bytes": "limit",
    "max count": "limit",
    "max filters": "limit",
    "max length": "limit",
    "max lifetime": "limit",
    "max list lengths": "limit",
    "max mailboxes": "limit",
    "max recipients": "limit",
    "max rows": "limit",
    "max script bytes": "limit",
    "max size": "limit",
    "maximum": "limit",
    "min classes": "number",
    "min length": "number",
    "minimum": "number",
    "most": "limit",
    "noun": "object",
    "password policy maxima": "limit",
    "source phrases": "sender",
    "str": "the sizes",
    "token mechanisms": "mechanism",
    "type name": "type",
    "without": "address",
}


def words_of_value(node: ast.AST) -> str:
    """Return words for the value of an expression that a reader of the reference understands."""
    name = value_name(node)
    return VALUE_WORDS.get(name, name)


def value_name(node: ast.AST) -> str:
    """Return words for the value of an expression, from its last name."""
    if isinstance(node, ast.Call):
        return value_name(node.args[0] if node.args else node.func)
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_").replace("_", " ").lower()
    if isinstance(node, ast.Name):
        return node.id.strip("_").replace("_", " ").lower()
    if isinstance(node, ast.Subscript | ast.Await):
        return value_name(node.value)
    return "value"

"""The places in the code that create the errors of a root field, with code and condition."""

import ast
import importlib
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from itertools import product
from typing import Any

from models.errors import ErrorCode, Forbidden, RequestError, ServiceUnavailable
from models.quantities import describe_duration
from tests.support.reference.errors.code_index import (
    Definition,
    FunctionNode,
    code_index,
    references_of,
)

ERRORS_MODULE = "models.errors"
MAX_STEPS = 4  # assignments and callers that the arguments of an error are followed through


@dataclass(frozen=True, slots=True, order=True)
class ErrorSite:
    """An error that a function creates."""

    code: str
    constraint: str  # of a VALIDATION error, else empty
    path: str  # from `input` or from the patch, empty if only the running code knows it
    condition: str  # the message, with names in italics for values; empty if it is computed


@dataclass(frozen=True, slots=True)
class Caller:
    """A function with a call, and the callers above it."""

    definition: Definition
    call: ast.Call


@dataclass(slots=True)
class Reach:
    """The functions that a root field can run, each with the calls of it."""

    names: list[str] = field(default_factory=list)
    callers: dict[str, list[Caller]] = field(default_factory=dict)


def reach_of(*names: str, without: Collection[str] = ()) -> Reach:
    """Follow all references from these functions, except those to the functions `without`."""
    index, reach, todo = code_index(), Reach(), deque(names)
    seen = {*names, *without}
    while todo:
        name = todo.popleft()
        reach.names.append(name)
        for reference in references_of(name):
            if reference.call is not None:
                caller = Caller(index.definitions[name], reference.call)
                reach.callers.setdefault(reference.target, []).append(caller)
            if reference.target not in seen:
                seen.add(reference.target)
                todo.append(reference.target)
    return reach


def error_sites(reach: Reach) -> set[ErrorSite]:
    """Return the errors that the reached functions create."""
    index = code_index()
    sites = set[ErrorSite]()
    for name in reach.names:
        definition = index.definitions[name]
        for reference in references_of(name) if name not in _error_classes() else ():
            if reference.call is not None and (error := error_class(reference.target)):
                sites |= set(_sites_of_call(reach, definition, reference.call, error))
    return sites


@cache
def _error_classes() -> dict[str, type[RequestError]]:
    """The classes of errors, by name."""
    index, found = code_index(), {}
    for name, definition in index.definitions.items():
        if isinstance(definition.node, ast.ClassDef) and index.method(name, "all_errors"):
            cls = getattr(importlib.import_module(definition.module), definition.node.name)
            if issubclass(cls, RequestError) and cls is not RequestError:
                found[name] = cls
    del found[f"{ERRORS_MODULE}.MultipleErrors"]
    return found


def error_class(name: str) -> type[RequestError] | None:
    """Return the error class with this name, or None if it is none."""
    return _error_classes().get(name)


def _sites_of_call(
    reach: Reach, definition: Definition, call: ast.Call, error: type[RequestError]
) -> Iterator[ErrorSite]:
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    signature = error.__init__.__annotations__
    if call.args and "message" in signature:
        arguments.setdefault("message", call.args[0])
    code = _code(error, arguments)
    constraint = _last_name(arguments.get("constraint"))
    message, path = arguments.get("message"), arguments.get("path")
    scope = Scope(reach, definition)
    messages = scope.texts(message) if message is not None else [""]
    paths = scope.paths(path) if path is not None else [""]
    for text in messages or [""]:
        for one in paths or [""]:
            yield ErrorSite(code, constraint, one, text)


def _code(error: type[RequestError], arguments: dict[str | None, Any]) -> str:
    if issubclass(error, Forbidden):
        requires = arguments.get("requires")
        is_given = requires is not None and ast.unparse(requires) != "None"
        return ErrorCode.FORBIDDEN if is_given else ErrorCode.FORBIDDEN_OPERATION
    if issubclass(error, ServiceUnavailable):
        if "aborted" in arguments:
            return ErrorCode.ABORTED
        return _last_name(arguments.get("code")) or ErrorCode.UNAVAILABLE
    return error.code


def _last_name(node: ast.AST | None) -> str:
    """Return the last name of an attribute such as `ErrorCode.CONFLICT`, else an empty text."""
    return node.attr if isinstance(node, ast.Attribute) and node.attr.isupper() else ""


@dataclass(frozen=True, slots=True)
class Scope:
    """A function whose expressions are evaluated as far as possible."""

    reach: Reach
    definition: Definition
    depth: int = 0

    def texts(self, node: ast.expr) -> list[str]:
        """Return the texts that an expression can have. Values are names in italics."""
        texts: list[str] = []
        match node:
            case ast.Constant(value=value):
                texts = [str(value)]
            case ast.JoinedStr(values=parts):
                texts = ["".join(map(self._part_text, parts))]
            case ast.IfExp(body=body, orelse=other):
                texts = [*self.texts(body), *self.texts(other)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                texts = [a + b for a in self.texts(left) for b in self.texts(right)]
            case ast.Name():
                texts = [text for scope, one in self._values(node) for text in scope.texts(one)]
            case ast.Subscript() | ast.Attribute() | ast.BinOp():
                value = self._constant_value_or_none(node)
                texts = [str(value)] if isinstance(value, str | int) else []
            case ast.Call(func=ast.Name(id="describe_duration"), args=[duration]):
                value = self._constant_value_or_none(duration)
                texts = [describe_duration(value)] if isinstance(value, timedelta) else []
        return texts

    def _constant_value_or_none(self, node: ast.expr) -> Any:
        """Evaluate an expression that only names constants of the module; None for any other."""
        names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        constants = vars(importlib.import_module(self.definition.module))
        if not names or not all(name.isupper() and name in constants for name in names):
            return None
        return eval(ast.unparse(node), dict(constants))  # noqa: S307 - code of this project

    def paths(self, node: ast.expr) -> list[str]:
        """Return the paths that an expression can have, with points between the parts."""
        if isinstance(node, ast.List | ast.Tuple):
            parts = [
                self.paths(part.value) if isinstance(part, ast.Starred) else self.texts(part)
                for part in node.elts
            ]
            return [".".join(path) for path in product(*parts)]
        if isinstance(node, ast.IfExp):
            return [*self.paths(node.body), *self.paths(node.orelse)]
        if isinstance(node, ast.Name):
            return [path for scope, value in self._values(node) for path in scope.paths(value)]
        return []

    def _values(self, use: ast.Name) -> Iterator[tuple["Scope", ast.expr]]:
        """Yield the expressions of a variable, a parameter or a constant of the module."""
        node, name = self.definition.node, use.id
        is_parameter = isinstance(node, FunctionNode) and name in _parameter_names(node)
        inner = replace(self, depth=self.depth + 1)
        for assignment in _last_assignments(node, use) if self.depth < MAX_STEPS else ():
            yield inner, assignment.value
        if is_parameter and self.depth < MAX_STEPS:
            for caller in self._callers():
                argument = _argument(self.definition, caller.call, name)
                if argument is not None:
                    yield Scope(self.reach, caller.definition, self.depth + 1), argument
        elif not is_parameter:
            value = _module_value(self.definition.module, name)
            if isinstance(value, str | int):
                yield self, ast.Constant(value)

    def _callers(self) -> list[Caller]:
        name, callers = self.definition.name, self.reach.callers
        if name.endswith(".__init__"):
            return callers.get(self.definition.class_name, [])
        return callers.get(name, [])

    def _part_text(self, part: ast.AST) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        assert isinstance(part, ast.FormattedValue)
        texts = self.texts(part.value)
        if len(texts) == 1 and len(texts[0]) < 200:
            return texts[0]
        return f"*{_value_name(part.value)}*"


def _value_name(node: ast.AST) -> str:
    """Return words for the value of an expression, from its last name."""
    if isinstance(node, ast.Call):
        return _value_name(node.args[0] if node.args else node.func)
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_").replace("_", " ").lower()
    if isinstance(node, ast.Name):
        return node.id.strip("_").replace("_", " ").lower()
    if isinstance(node, ast.Subscript | ast.Await):
        return _value_name(node.value)
    return "value"


def _parameter_names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = node.args
    return [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def _argument(definition: Definition, call: ast.Call, name: str) -> ast.expr | None:
    """Return what a call passes for a parameter: an argument, or the default."""
    node = definition.node
    assert isinstance(node, FunctionNode)
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
    if names and names[0] in ("self", "cls"):
        names = names[1:]
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


def _last_assignments(node: ast.AST, use: ast.Name) -> list[ast.Assign]:
    """Return the last assignment of a variable before a use, with those of its other branches."""
    assignments = _assignments(node, use.id)
    before = [assignment for assignment in assignments if assignment.lineno <= use.lineno]
    if not before:
        return []
    last = max(before, key=lambda one: one.lineno)
    for branching in ast.walk(node):  # from the outermost
        if isinstance(branching, ast.If | ast.Match | ast.Try):
            is_around_use = branching.lineno <= use.lineno <= (branching.end_lineno or 0)
            branches = _assignments(branching, use.id)
            if last in branches and not is_around_use:
                return branches
    return [last]


def _assignments(node: ast.AST, name: str) -> list[ast.Assign]:
    return [
        one
        for one in ast.walk(node)
        if isinstance(one, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in one.targets)
    ]


def _module_value(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name, None)

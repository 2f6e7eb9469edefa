"""The places in the code that create the errors of a root field, with code and condition."""

import ast
import builtins
import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from types import SimpleNamespace
from typing import Any

from models.errors import ErrorCode, Forbidden, RequestError, ServiceUnavailable
from models.quantities import describe_duration
from tests.support.reference.errors.code_index import (
    Definition,
    FunctionNode,
    code_index,
    nodes_of,
    references_of,
)
from tests.support.reference.errors.constant_arguments import run_references
from tests.support.reference.errors.error_classes import (
    CODES_BY_CLASS,
    codes_of_classes,
    error_class,
    error_classes,
    is_handled,
)
from tests.support.reference.errors.error_site import ErrorSite
from tests.support.reference.errors.function_syntax import (
    POSITION_NAMES,
    ExceptClause,
    PathChange,
    argument_of_call,
    catches_errors_of_with_blocks,
    conditions_of_line,
    handler_of_variable,
    has_yield,
    iterated_items,
    iterated_values,
    last_assignments,
    parameter_names,
    path_changes_of,
    positional_names,
    returned_values,
    with_block,
    words_of_value,
)
from tests.support.reference.errors.reach import (
    Caller,
    CodeLines,
    Reach,
    reach_of_block,
    references_in_block,
)

MAX_STEPS = 6  # assignments and callers that the arguments of an error are followed through


def error_sites(reach: Reach) -> set[ErrorSite]:
    """Return the errors that the reached functions create, or raise again with another path."""
    index = code_index()
    sites = set[ErrorSite]()
    for name in reach.names:
        if name in error_classes():
            continue
        definition = index.definitions[name]
        for reference in run_references(name, reach.parameters.get(name, {})):
            error = error_class(reference.target)
            handled = reach.handled[name] | reference.handled
            if reference.call and error and not is_handled(error, handled):
                sites |= set(_sites_of_call(reach, definition, reference.call, error))
        handled_codes = codes_of_classes(reach.handled[name])
        for change in path_changes_of(name):
            changed_sites = _sites_of_path_change(reach, definition, change)
            sites |= {site for site in changed_sites if site.code not in handled_codes}
    return sites


def _error_sites_of_block(outer: Reach, block: CodeLines) -> set[ErrorSite]:
    """Return the errors that a block of a reached function creates."""
    if block not in outer.errors_by_block:
        reach = reach_of_block(outer, block)
        definition = code_index().definitions[block.function]
        sites = error_sites(reach)
        for reference in references_in_block(reach, block):
            if reference.call is not None and (error := error_class(reference.target)):
                sites |= set(_sites_of_call(reach, definition, reference.call, error))
        for change in path_changes_of(block.function):
            if block.has_line(change.error.lineno):
                sites |= set(_sites_of_path_change(reach, definition, change))
        outer.errors_by_block[block] = sites
    return outer.errors_by_block[block]


def _sites_of_call(
    reach: Reach, definition: Definition, call: ast.Call, error: type[RequestError]
) -> Iterator[ErrorSite]:
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    signature = error.__init__.__annotations__
    if call.args and "message" in signature:
        arguments.setdefault("message", call.args[0])
    code = _code(error, arguments)
    constraint = arguments.get("constraint")
    message, path = arguments.get("message"), arguments.get("path")
    scopes = list(_scopes_of_error(reach, definition, arguments.values(), error))
    rules_of_scopes = [
        scope.rules(constraint) if constraint is not None else scope.errors_in(message)
        for scope in scopes
    ]
    has_rules = constraint is not None and any(rules_of_scopes)
    for scope, rules in zip(scopes, rules_of_scopes, strict=True):
        for rule in rules or [ErrorRule("")] * (not has_rules):
            bound = scope.with_caught_error(rule)
            messages = bound.texts(message) if message is not None else [""]
            if not messages and rule.error:
                messages = [rule.error.condition]  # a computed message contains the caught one
            paths = bound.paths(path) if path is not None else [""]
            for text, one in product(messages or [""], paths or [""]):
                yield ErrorSite(code, rule.constraint, one, text)


def _sites_of_path_change(
    reach: Reach, definition: Definition, change: PathChange
) -> Iterator[ErrorSite]:
    """Yield the caught errors with the new path, if the code shows the path."""
    for scope in _scopes(reach, definition):
        for site in scope.caught_errors(change.error):
            bound = scope.with_caught_error(
                ErrorRule(site.constraint, site, change.error.id, definition)
            )
            if bound.can_run(change.error.lineno):
                for path in bound.paths(change.path):
                    yield replace(site, path=path)


def _scopes(reach: Reach, definition: Definition) -> Iterator["Scope"]:
    """Yield the scope of a function, or one scope for each `with` block of a context manager.

    The errors of a block are only raised again with the arguments of that block.
    """
    if catches_errors_of_with_blocks(definition.name):
        callers = callers_of(reach, definition)
        yield from (Scope(reach, definition, (caller,)) for caller in callers)
        if callers:
            return
    yield Scope(reach, definition)


def _scopes_of_error(
    reach: Reach,
    definition: Definition,
    arguments: Iterable[ast.expr],
    error: type[RequestError],
) -> Iterator["Scope"]:
    """Yield a scope for each call of a function whose error has arguments that variables decide.

    So the arguments of an error are of one call. A call that drops the error has no scope.
    """
    nodes = (node for argument in arguments for node in nodes_of(argument))
    callers = callers_of(reach, definition)
    if not callers or all(not isinstance(node, ast.Name) or node.id.isupper() for node in nodes):
        yield Scope(reach, definition)
        return
    is_in_block = any(block.function == definition.name for block in reach.blocks)
    for caller in callers:
        if is_in_block or not is_handled(error, caller.handled):
            yield Scope(reach, definition, (caller,))
    values = reach.handled_of_values.get(definition.name, ())
    if not all(is_handled(error, handled) for handled in values):
        yield Scope(reach, definition, ())


def callers_of(reach: Reach, definition: Definition) -> list[Caller]:
    """Return the callers of a function, or of the class if it is `__init__`."""
    is_initializer = definition.name.endswith(".__init__")
    name = definition.class_name if is_initializer else definition.name
    return reach.callers.get(name, [])


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
class ErrorRule:
    """A rule that an error can have, with the caught error that it is from."""

    constraint: str
    error: ErrorSite | None = None
    error_name: str = ""  # the variable with the caught error, in the function `definition`
    definition: Definition | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """A function whose expressions are evaluated as far as possible."""

    reach: Reach
    definition: Definition
    callers: tuple[Caller, ...] | None = None  # the evaluated calls; None: all
    depth: int = 0
    error: ErrorSite | None = None  # a caught error that the function raises again
    error_name: str = ""  # the variable with that error, empty if another function has it

    def with_caught_error(self, rule: ErrorRule) -> "Scope":
        """Return a scope in which the variable of the caught error has this error."""
        is_in_function = rule.definition is self.definition
        return replace(self, error=rule.error, error_name=rule.error_name if is_in_function else "")

    def rules(self, node: ast.expr) -> list[ErrorRule]:
        """Return the rules that the argument `constraint` of an error can have."""
        match node:
            case ast.IfExp(body=body, orelse=other):
                return [*self.rules(body), *self.rules(other)]
            case ast.Name():
                return [rule for scope, one in self._values(node) for rule in scope.rules(one)]
            case ast.Attribute(value=ast.Name(id=name) as error, attr="constraint"):
                return [
                    ErrorRule(site.constraint, site, name, self.definition)
                    for site in sorted(self.caught_errors(error))
                    if site.constraint
                ]
            case ast.Constant(value=str() as value):
                return [ErrorRule(str(value))]
        name = _last_name(node)
        return [ErrorRule(name)] if name else []

    def errors_in(self, message: ast.expr | None) -> list[ErrorRule]:
        """Return the caught errors of a message such as `error.message`, without their rules."""
        match message:
            case ast.Attribute(value=ast.Name(id=name) as error, attr="message"):
                errors = sorted(self.caught_errors(error))
                return [ErrorRule("", site, name, self.definition) for site in errors]
        return []

    def caught_errors(self, node: ast.expr) -> set[ErrorSite]:
        """Return the errors that a variable can have in an exception handler or in a function.

        The function is one that an exception handler calls with the error.
        """
        if isinstance(node, ast.Attribute) and node.attr == "all_errors":
            return self.caught_errors(node.value)
        if not isinstance(node, ast.Name):
            return set()
        if clause := handler_of_variable(self.definition.node, node):
            return self._errors_of_handler(clause)
        if self.depth >= MAX_STEPS:
            return set()
        inner = replace(self, depth=self.depth + 1)
        values = [(inner, one) for one in iterated_values(self.definition.node, node.id)]
        errors = set[ErrorSite]()
        for scope, value in values or self._values(node):
            errors |= scope.caught_errors(value)
        return errors

    def _errors_of_handler(self, clause: ExceptClause) -> set[ErrorSite]:
        codes = _caught_codes(self.definition.module, clause.handler)
        return {
            site
            for block in self._blocks_of_try(clause.statement)
            if codes and block not in self.reach.blocks  # or the block calls itself
            for site in _error_sites_of_block(self.reach, block)
            if site.code in codes
        }

    def _blocks_of_try(self, statement: ast.Try) -> Iterator[CodeLines]:
        """Yield the body of a `try` statement, or the blocks that a context manager encloses."""
        if not has_yield(statement):
            yield CodeLines.of_body(self.definition.name, statement.body)
            return
        for caller in self._callers():
            if block := with_block(caller.definition.node, caller.call):
                yield CodeLines.of_body(caller.definition.name, block.body)

    def can_run(self, line: int) -> bool:
        """True unless a condition of an `if` statement on the caught error excludes a line."""
        return all(
            self._decision(test) in (None, result)
            for test, result in conditions_of_line(self.definition.node, line)
        )

    def _decision(self, test: ast.expr) -> bool | None:
        """Return the result of a test of the path of the caught error; None for any other."""
        nodes = nodes_of(test)
        names = {one.id for one in nodes if isinstance(one, ast.Name)}
        constants = vars(importlib.import_module(self.definition.module))
        if (
            not self.error
            or not self.error.path
            or self.error_name not in names
            or not names - {self.error_name} <= constants.keys()
            or any(isinstance(one, ast.Call) for one in nodes)
        ):
            return None
        error = SimpleNamespace(path=self.error.path.split("."))
        try:
            return bool(
                eval(ast.unparse(test), {**constants, self.error_name: error})  # noqa: S307 - code of this project
            )
        except (AttributeError, LookupError, TypeError):  # it tests more than the path
            return None

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
            case ast.Attribute(value=ast.Name(id=name), attr="message") if (
                self.error and name == self.error_name
            ):
                texts = [self.error.condition] if self.error.condition else []
            case ast.Subscript() | ast.Attribute() | ast.BinOp():
                value = self._constant_value_or_none(node)
                texts = [str(value)] if isinstance(value, str | int) else []
            case ast.Call(func=ast.Name(id="describe_duration"), args=[duration]):
                value = self._constant_value_or_none(duration)
                texts = [describe_duration(value)] if isinstance(value, timedelta) else []
        return texts

    def _constant_value_or_none(self, node: ast.expr) -> Any:
        """Evaluate an expression that only names constants of the module; None for any other."""
        names = {one.id for one in nodes_of(node) if isinstance(one, ast.Name)}
        constants = vars(importlib.import_module(self.definition.module))
        if not names or not all(name.isupper() and name in constants for name in names):
            return None
        return eval(ast.unparse(node), dict(constants))  # noqa: S307 - code of this project

    def paths(self, node: ast.expr) -> list[str]:
        """Return the paths that an expression can have, with points between the parts."""
        paths: list[str] = []
        match node:
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                paths = [".".join(path) for path in product(*map(self._path_part_texts, parts))]
            case ast.IfExp(test=test, body=body, orelse=other):
                decision = self._decision(test)
                paths = [] if decision is False else self.paths(body)
                paths += [] if decision else self.paths(other)
            case ast.Name():
                paths = [path for scope, one in self._values(node) for path in scope.paths(one)]
            case ast.Call(func=ast.Name(id="list" | "tuple"), args=[inner]):
                paths = self.paths(inner)
            case ast.Call():
                paths = self._computed_paths(node) or self._returned_paths(node)
            case ast.Attribute(value=ast.Name(id=name), attr="path") if (
                self.error and name == self.error_name
            ):
                paths = [self.error.path] if self.error.path else []
        return paths

    def _computed_paths(self, call: ast.Call) -> list[str]:
        """Call a function of the module with the path of the caught error, and 0 for variables."""
        names = {one.id for one in nodes_of(call) if isinstance(one, ast.Name)}
        if not self.error or not self.error.path or self.error_name not in names:
            return []
        constants = vars(importlib.import_module(self.definition.module))
        variables = dict.fromkeys(names - constants.keys() - vars(builtins).keys(), 0)
        error = SimpleNamespace(path=self.error.path.split("."))
        try:
            path = eval(  # noqa: S307 - code of this project
                ast.unparse(call), {**constants, **variables, self.error_name: error}
            )
        except (AttributeError, LookupError, TypeError, ValueError):
            return []  # it needs more than the path
        return [".".join(path)] if isinstance(path, list) else []

    def _returned_paths(self, call: ast.Call) -> list[str]:
        """Return the paths that a function of the project returns to a call."""
        if self.depth >= MAX_STEPS:
            return []
        targets = [one.target for one in references_of(self.definition.name) if one.call is call]
        paths = []
        for definition in map(code_index().definitions.__getitem__, targets):
            callers = (Caller(self.definition, call),)
            scope = Scope(self.reach, definition, callers, self.depth + 1, self.error)
            for value in returned_values(definition.node):
                paths += scope.paths(value)
        return paths

    def _path_part_texts(self, part: ast.expr) -> list[str]:
        match part:
            case ast.Starred(value=value):
                return self.paths(value)
            case ast.Call(func=ast.Name(id="str"), args=[ast.Name(id=name)]) if (
                name in POSITION_NAMES
            ):
                return ["0"]  # the path of the first item stands for those of all items
        return self.texts(part)

    def _values(self, use: ast.Name) -> Iterator[tuple["Scope", ast.expr]]:
        """Yield the expressions of a variable, a parameter or a constant of the module."""
        node, name = self.definition.node, use.id
        is_parameter = isinstance(node, FunctionNode) and name in parameter_names(node)
        inner = replace(self, depth=self.depth + 1)
        for assignment in last_assignments(node, use) if self.depth < MAX_STEPS else ():
            yield inner, assignment.value
        if is_parameter and self.depth < MAX_STEPS:
            for caller in self._callers():
                argument = argument_of_call(self.definition, caller.call, name)
                if argument is not None:
                    scope = Scope(
                        self.reach, caller.definition, depth=self.depth + 1, error=self.error
                    )
                    yield scope, argument
        elif isinstance(node, FunctionNode) and node.args.vararg and name == node.args.vararg.arg:
            yield from self._values_of_extra_arguments()
        elif items := list(iterated_items(node, name)):
            yield from ((inner, item) for item in items)
        elif not is_parameter:
            value = _module_value(self.definition.module, name)
            if isinstance(value, str | int):
                yield self, ast.Constant(value)
            elif isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
                yield self, ast.List([ast.Constant(one) for one in value], ast.Load())

    def _values_of_extra_arguments(self) -> Iterator[tuple["Scope", ast.expr]]:
        """Yield the tuple that each call passes for a parameter such as `*path`."""
        assert isinstance(self.definition.node, FunctionNode)
        names = positional_names(self.definition.node)
        for caller in self._callers() if self.depth < MAX_STEPS else ():
            scope = Scope(self.reach, caller.definition, depth=self.depth + 1, error=self.error)
            yield scope, ast.Tuple(caller.call.args[len(names) :], ast.Load())

    def _callers(self) -> Sequence[Caller]:
        return callers_of(self.reach, self.definition) if self.callers is None else self.callers

    def _part_text(self, part: ast.AST) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        assert isinstance(part, ast.FormattedValue)
        texts = self.texts(part.value)
        if len(texts) == 1 and len(texts[0]) < 200:
            return texts[0]
        return f"*{words_of_value(part.value)}*"


def _caught_codes(module: str, handler: ast.ExceptHandler) -> frozenset[str]:
    """Return the codes of the errors that a handler catches. MultipleErrors has VALIDATION only."""
    types: Sequence[ast.expr | None] = (
        handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    )
    codes = frozenset[str]()
    for type_ in types:
        cls = _module_value(module, type_.id) if isinstance(type_, ast.Name) else None
        if isinstance(cls, type) and issubclass(cls, RequestError):
            codes |= CODES_BY_CLASS.get(cls, frozenset({cls.code}))
    return codes


def _module_value(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name, None)

"""An index of the project's functions and classes, and the names that a function refers to."""

import ast
import asyncio
import re
import socket
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from threading import Thread

ROOT = Path(__file__).parents[4]
LAYERS = ("models", "mail", "resolvers", "graph")
# Methods of common types, whose name says nothing about the class of the object.
COMMON_TYPES = (
    str, bytes, list, dict, set, int, float, re.Pattern, re.Match, Path, datetime, Future, Executor,
    Thread, asyncio.Queue, asyncio.StreamWriter, socket.socket,
)  # fmt: skip
COMMON_METHODS = {name for kind in COMMON_TYPES for name in dir(kind)}
MAX_METHODS_OF_A_NAME = 4  # of more classes the receiver must be known
CALLED_WITH_CLASS = (
    "__init__", "__post_init__", "__call__", "__enter__", "__exit__", "__aenter__", "__aexit__",
)  # fmt: skip
# Attributes of an error without its code.
DESCRIPTIVE_ATTRIBUTES = ("args", "constraint", "index", "message", "retry_after")
# Classes that get the functions of a task: the worker runs them, not the request that queues it.
TASK_CLASSES = ("RecordTaskKind", "TaskRunner")
# Attributes with a function of an upper layer, which raises errors.
STORED_FUNCTIONS = {
    "charge_bytes": "graph.http.admission_control.AdmissionControl.charge_viewer",
}
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def nodes_of(node: ast.AST) -> tuple[ast.AST, ...]:
    """Return a node and all nodes in it, in the order of `ast.walk`.

    Cached, since the analysis walks the same functions many times.
    """
    return tuple(ast.walk(node))


def source_text(node: ast.AST) -> str:
    """Return the source text of an expression. Most are names, which need no `ast.unparse`."""
    attributes, value = list[str](), node
    while isinstance(value, ast.Attribute):
        attributes.append(value.attr)
        value = value.value
    if isinstance(value, ast.Name):
        return ".".join((value.id, *reversed(attributes)))
    return ast.unparse(node)


@dataclass(frozen=True, slots=True)
class Definition:
    """A function, a method, a class or an assignment at the top of a module."""

    name: str  # with module and class, such as `models.errors.RequestError`
    module: str
    node: ast.AST
    class_name: str = ""  # of a method: the name of its class, with module


@dataclass(frozen=True, slots=True)
class Reference:
    """A use of a definition, with the call if it is called."""

    target: str
    call: ast.Call | None = None
    node: ast.expr | None = None  # the name or attribute
    # Classes of errors that never leave the function if the definition raises them here.
    handled: frozenset[str] = frozenset()


@dataclass(slots=True)
class CodeIndex:
    """All definitions of the layers, by name, and the imports of each module."""

    definitions: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, dict[str, str]] = field(default_factory=dict)
    methods: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    modules: set[str] = field(default_factory=set)
    # By last name and module: the names and attributes that the module uses without a call.
    passed: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(dict))
    resolved: dict[str, str] = field(default_factory=dict)

    def resolve(self, name: str) -> str:
        """Return the name of the definition or module that an imported name refers to."""
        if name not in self.resolved:
            self.resolved[name] = self._resolve(name)
        return self.resolved[name]

    def _resolve(self, name: str) -> str:
        if name in self.definitions or name in self.modules:
            return name
        module, _, member = name.rpartition(".")
        if not module:
            return name
        module = self.resolve(module)
        if f"{module}.{member}" in self.definitions or f"{module}.{member}" in self.modules:
            return f"{module}.{member}"
        target = self.imports.get(module, {}).get(member)
        return f"{module}.{member}" if target in (None, name) else self.resolve(target)

    def method(self, class_name: str, member: str) -> str:
        """Return the name of a method of a class or its bases, or an empty text."""
        definition = self.definitions.get(class_name)
        if definition is None or not isinstance(definition.node, ast.ClassDef):
            return ""
        if f"{class_name}.{member}" in self.definitions:
            return f"{class_name}.{member}"
        for base in definition.node.bases:
            base_name = self.resolve(f"{definition.module}.{source_text(base)}")
            if base_name != class_name and (found := self.method(base_name, member)):
                return found
        return ""

    def annotated_class(self, annotation: ast.AST | None, module: str) -> str:
        """Return the class that an annotation names, also as `X | None` or in a container."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        for node in ast.walk(annotation) if annotation is not None else ():
            if isinstance(node, ast.Name | ast.Attribute):
                name = self.resolve(f"{module}.{source_text(node)}")
                definition = self.definitions.get(name)
                if definition and isinstance(definition.node, ast.ClassDef):
                    return name
        return ""


@cache
def code_index() -> CodeIndex:
    """Parse all modules of the layers."""
    index = CodeIndex()
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            index.modules.add(module)
            add_module(index, module, ast.parse(path.read_text(encoding="utf-8")), path)
    return index


def add_module(index: CodeIndex, module: str, tree: ast.Module, path: Path) -> None:
    """Add the definitions and imports of a module. `path` is that of its file."""
    imports, nodes = index.imports.setdefault(module, {}), tuple(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                imports[alias.asname or alias.name.partition(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    if path.name == "__init__.py":
        for sibling in path.parent.iterdir():
            imports.setdefault(sibling.stem, f"{module}.{sibling.stem}")
    for statement in tree.body:
        _add_statement(index, module, statement)
    for name, texts in _names_without_call(nodes).items():
        index.passed[name][module] = texts


def _names_without_call(nodes: Sequence[ast.AST]) -> dict[str, set[str]]:
    """Return the names and attributes that nodes of a module use without a call, by last name.

    A function that it imports under another name counts as used.
    """
    names = defaultdict[str, set[str]](set)
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.alias) and node.asname:
            names[node.name].add(node.asname)
        elif isinstance(node, ast.Name | ast.Attribute) and id(node) not in called:
            text = source_text(node)
            names[text.rpartition(".")[2]].add(text)
    return names


def _add_statement(index: CodeIndex, module: str, statement: ast.stmt) -> None:
    if isinstance(statement, FunctionNode):
        name = f"{module}.{statement.name}"
        index.definitions[name] = Definition(name, module, statement)
    elif isinstance(statement, ast.ClassDef):
        class_name = f"{module}.{statement.name}"
        index.definitions[class_name] = Definition(class_name, module, statement)
        for member in statement.body:
            if isinstance(member, FunctionNode):
                name = f"{class_name}.{member.name}"
                index.definitions[name] = Definition(name, module, member, class_name)
                index.methods[member.name].append(name)
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            if isinstance(target, ast.Name):
                name = f"{module}.{target.id}"
                index.definitions[name] = Definition(name, module, statement)
    elif isinstance(statement, ast.If | ast.Try | ast.With):
        for inner in statement.body:
            _add_statement(index, module, inner)


@cache
def references_of(name: str) -> tuple[Reference, ...]:
    """Return the definitions that a function, a constant or an instantiated class refers to."""
    index = code_index()
    definition = index.definitions[name]
    if isinstance(definition.node, ast.ClassDef):
        methods = (index.method(name, member) for member in CALLED_WITH_CLASS)
        return tuple(Reference(method) for method in methods if method)
    return tuple(_iter_references(index, definition))


def _iter_references(index: CodeIndex, definition: Definition) -> Iterator[Reference]:
    classes = _classes_of_variables(index, definition)
    calls = {
        id(node.func): node for node in nodes_of(definition.node) if isinstance(node, ast.Call)
    }
    handled = _handled_classes(definition.node)
    for node in _iter_run_nodes(definition.node):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            for target in _targets(index, definition, classes, node, id(node) in calls):
                names = handled.get(id(node), frozenset())
                yield Reference(target, calls.get(id(node)), node, names)


def _handled_classes(function: ast.AST) -> dict[int, frozenset[str]]:
    """Return the error classes that a function catches and drops, by node inside the block."""
    handled: dict[int, frozenset[str]] = {}
    for statement in nodes_of(function):
        if isinstance(statement, ast.Try):
            types = [one.type for one in statement.handlers if one.type and _drops_error(one)]
        elif isinstance(statement, ast.With):
            calls = [item.context_expr for item in statement.items]
            types = [type_ for call in calls for type_ in _suppressed_types(call)]
        else:
            continue
        nodes = [node for type_ in types for node in nodes_of(type_)]
        names = frozenset(
            node.id if isinstance(node, ast.Name) else node.attr
            for node in nodes
            if isinstance(node, ast.Name | ast.Attribute)
        )
        for part in statement.body if names else ():
            for node in nodes_of(part):
                handled[id(node)] = handled.get(id(node), frozenset()) | names
    return handled


def _drops_error(handler: ast.ExceptHandler) -> bool:
    """True if a handler neither raises the error again nor passes it or its code on."""
    dropped_uses = set[int]()
    for node in nodes_of(handler):
        match node:
            case ast.Raise(exc=None):
                return False
            case ast.Raise(cause=ast.Name() as name):
                dropped_uses.add(id(name))
            case ast.Attribute(value=ast.Name() as name, attr=attribute) if (
                attribute in DESCRIPTIVE_ATTRIBUTES
            ):
                dropped_uses.add(id(name))
            case ast.FormattedValue(value=ast.Name() as name):
                dropped_uses.add(id(name))
            case ast.Call(
                func=ast.Name(id="str" | "repr" | "isinstance"), args=[ast.Name() as name, *_]
            ):
                dropped_uses.add(id(name))
    return all(
        id(node) in dropped_uses
        for node in nodes_of(handler)
        if isinstance(node, ast.Name) and node.id == handler.name
    )


def _suppressed_types(call: ast.expr) -> list[ast.expr]:
    """Return the arguments of `suppress` or `contextlib.suppress`."""
    is_suppress = isinstance(call, ast.Call) and source_text(call.func).endswith("suppress")
    return call.args if isinstance(call, ast.Call) and is_suppress else []


def _iter_run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run, without annotations, type parameters and functions of tasks."""
    skipped = {"annotation", "returns", "type_params"}
    if isinstance(node, ast.Call) and source_text(node.func) in TASK_CLASSES:
        skipped |= {"args", "keywords"}
    for name, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children if name not in skipped else ():
            if isinstance(child, ast.AST):
                yield child
                yield from _iter_run_nodes(child)


def _targets(
    index: CodeIndex,
    definition: Definition,
    classes: dict[str, str],
    node: ast.Name | ast.Attribute,
    is_called: bool,
) -> list[str]:
    name = index.resolve(f"{definition.module}.{source_text(node)}")
    if name in index.definitions:
        return [name]
    if isinstance(node, ast.Name) or node.attr in STORED_FUNCTIONS:
        return [STORED_FUNCTIONS[node.attr]] if isinstance(node, ast.Attribute) else []
    if class_name := class_of_value(index, definition, classes, node.value):
        method = index.method(class_name, node.attr)
        return [method] if method else []
    owner = index.resolve(f"{definition.module}.{source_text(node.value)}")
    if owner in index.definitions and (method := index.method(owner, node.attr)):
        return [method]
    if not is_called or node.attr in COMMON_METHODS or _is_external(index, owner):
        return []
    candidates = [
        name for name in index.methods.get(node.attr, []) if _may_call(definition.name, name)
    ]
    return candidates if len(candidates) <= MAX_METHODS_OF_A_NAME else []


def _may_call(caller: str, callee: str) -> bool:
    """True unless the callee is in a layer above that of the caller."""
    return LAYERS.index(callee.partition(".")[0]) <= LAYERS.index(caller.partition(".")[0])


def _is_external(index: CodeIndex, name: str) -> bool:
    """True for a module of another project, such as `asyncio`."""
    return name.partition(".")[0] not in (*LAYERS, "") and name not in index.modules


def class_of_value(
    index: CodeIndex, definition: Definition, classes: dict[str, str], value: ast.AST
) -> str:
    """Return the class of an expression, as far as names and annotations show it."""
    match value:
        case ast.Await(value=inner) | ast.Starred(value=inner) | ast.NamedExpr(value=inner):
            return class_of_value(index, definition, classes, inner)
        case ast.Name(id=name):
            return classes.get(name, "")
        case ast.Call():
            return _class_of_call(index, definition, classes, value)
        case ast.Attribute(value=inner, attr=attribute):
            owner = class_of_value(index, definition, classes, inner)
            return _class_of_attribute(index, owner, attribute) if owner else ""
    return ""


def _class_of_call(
    index: CodeIndex, definition: Definition, classes: dict[str, str], call: ast.Call
) -> str:
    name = index.resolve(f"{definition.module}.{source_text(call.func)}")
    if name not in index.definitions and isinstance(call.func, ast.Attribute):
        owner = class_of_value(index, definition, classes, call.func.value)
        name = index.method(owner, call.func.attr) if owner else ""
    match index.definitions.get(name):
        case Definition(node=ast.ClassDef()):
            return name
        case Definition(node=ast.FunctionDef() | ast.AsyncFunctionDef() as node) as found:
            if (
                found.class_name
                and isinstance(node.returns, ast.Name)
                and node.returns.id == "Self"
            ):
                return found.class_name
            return index.annotated_class(node.returns, found.module)
    return ""


def _class_of_attribute(index: CodeIndex, class_name: str, attribute: str) -> str:
    method = index.method(class_name, attribute)
    if method:  # a property
        found = index.definitions[method]
        assert isinstance(found.node, FunctionNode)
        return index.annotated_class(found.node.returns, found.module)
    definition = index.definitions[class_name]
    assert isinstance(definition.node, ast.ClassDef)
    for member in definition.node.body:
        if isinstance(member, ast.AnnAssign) and source_text(member.target) == attribute:
            return index.annotated_class(member.annotation, definition.module)
    if value_class := _class_of_initial_value(index, class_name, attribute):
        return value_class
    for base in definition.node.bases:
        base_name = index.resolve(f"{definition.module}.{source_text(base)}")
        if base_name in index.definitions and base_name != class_name:
            return _class_of_attribute(index, base_name, attribute)
    return ""


def _class_of_initial_value(index: CodeIndex, class_name: str, attribute: str) -> str:
    """Return the class of the value that `__init__` of the class assigns to an attribute."""
    definition = index.definitions.get(f"{class_name}.__init__")
    if definition is None:
        return ""
    classes = _classes_of_variables(index, definition)
    for node in nodes_of(definition.node):
        match node:
            case ast.AnnAssign(target=target, annotation=annotation) if (
                source_text(target) == f"self.{attribute}"
            ):
                return index.annotated_class(annotation, definition.module)
            case ast.Assign(targets=[target], value=value) if (
                source_text(target) == f"self.{attribute}"
            ):
                return class_of_value(index, definition, classes, value)
    return ""


def _classes_of_variables(index: CodeIndex, definition: Definition) -> dict[str, str]:
    """Return the classes of parameters and local variables, by name."""
    classes = {}
    for node in nodes_of(definition.node):
        if isinstance(node, ast.arg):
            classes[node.arg] = index.annotated_class(node.annotation, definition.module)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            classes[node.target.id] = index.annotated_class(node.annotation, definition.module)
    if definition.class_name:
        classes["self"] = classes["cls"] = definition.class_name
    for node in nodes_of(definition.node):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found = class_of_value(index, definition, classes, node.value)
            classes.setdefault(node.targets[0].id, found)
        elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            if isinstance(node.target, ast.Name):
                found = class_of_value(index, definition, classes, node.iter)
                classes.setdefault(node.target.id, found)
        elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            found = class_of_value(index, definition, classes, node.context_expr)
            classes.setdefault(node.optional_vars.id, found)
    return {name: found for name, found in classes.items() if found}

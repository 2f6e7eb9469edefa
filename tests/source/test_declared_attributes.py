"""Attributes of the product's classes are declared where readers and type checkers find them."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = ("merganser", "graph", "resolvers", "mail", "models")
Function = ast.FunctionDef | ast.AsyncFunctionDef
CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__"})


@dataclass
class ClassAttributes:
    """The attributes that one class declares, and those that its other methods assign."""

    bases: list[str]
    declared: set[str] = field(default_factory=set)
    assigned: set[str] = field(default_factory=set)


def assigned_attributes(function: Function) -> set[str]:
    """Names that the function, or a function inside it, assigns on `self`."""
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
    }


def class_attributes(definition: ast.ClassDef) -> ClassAttributes:
    result = ClassAttributes([ast.unparse(base).partition("[")[0] for base in definition.bases])
    for statement in definition.body:
        if isinstance(statement, Function):
            result.declared.add(statement.name)
            names = assigned_attributes(statement)
            if statement.name in CONSTRUCTORS:
                result.declared |= names
            else:
                result.assigned |= names
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            nodes = [node for target in targets for node in ast.walk(target)]
            result.declared |= {node.id for node in nodes if isinstance(node, ast.Name)}
            if statement.value and "__slots__" in result.declared:
                constants = (n for n in ast.walk(statement.value) if isinstance(n, ast.Constant))
                result.declared |= {str(constant.value) for constant in constants}
    return result


def undeclared_attributes(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Attributes assigned outside the constructor and declared nowhere.

    Classes with a base from a library are left out, since the base can declare attributes.
    """
    classes = {
        node.name: class_attributes(node)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def declared_names(name: str) -> set[str] | None:
        if name in ("object", "Protocol", "ABC"):
            return set()
        if name not in classes:
            return None
        result = set(classes[name].declared)
        for base in classes[name].bases:
            inherited = declared_names(base)
            if inherited is None:
                return None
            result |= inherited
        return result

    for name, attributes in classes.items():
        declared = declared_names(name)
        if declared is not None:
            yield from (f"{name}.{missing}" for missing in sorted(attributes.assigned - declared))


def test_attributes_are_declared_in_class_body_or_constructor() -> None:
    paths = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
    trees = {str(path): ast.parse(path.read_text()) for path in paths}
    assert not list(undeclared_attributes(trees))


def test_attribute_that_only_a_method_assigns_is_found() -> None:
    source = """
class Base:
    is_open = False
class Connection(Base):
    def __init__(self): self.port = 1
    def open(self):
        self.is_open, self.port = True, 2
        def note(): self.opened = True
class Extern(Library):
    def open(self): self.opened = True
"""
    assert list(undeclared_attributes({"module": ast.parse(source)})) == ["Connection.opened"]

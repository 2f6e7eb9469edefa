"""Every function and constant of the product is used.

A method that overrides one of a library and lost its name is such an unused function: the library
calls its own method instead, and nothing else fails.
"""

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("models", "mail", "resolvers", "graph", "merganser")
OTHER_USERS = ("migrations", "bench")
# Parsers of graphql-core and httptools, and aiodataloader, call the methods with these names.
CALLBACK = re.compile(r"(enter|leave|on)_\w+|batch_load_fn")
TEST_ENTRIES = frozenset(  # the worker runs many at once; the server starts listeners on sockets
    {
        "mail.smtp.lmtp.start_lmtp_listener",
        "mail.storage.blob_cache.cache_folder.BlobCacheFolder.file_totals",
        "resolvers.admin.tasks.run_next_task",
    }
)
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class FunctionDefinition:
    """A function without a decorator; `class_path` is empty outside a class."""

    module: str
    class_path: tuple[str, ...]
    name: str

    @property
    def path(self) -> str:
        return ".".join((self.module, *self.class_path, self.name))

    @property
    def is_override(self) -> bool:
        """True if a base class, also of a library, has a member with this name."""
        if not self.class_path:
            return False
        owner = importlib.import_module(self.module)
        for name in self.class_path:
            owner = getattr(owner, name)
        return any(self.name in vars(base) for base in owner.__mro__[1:])


def function_definitions(
    node: ast.AST, module: str, class_path: tuple[str, ...] = ()
) -> Iterator[FunctionDefinition]:
    """Yield the functions and methods of a module that no decorator registers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from function_definitions(child, module, (*class_path, child.name))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            is_special = child.name.startswith("__")
            if not (child.decorator_list or is_special):
                yield FunctionDefinition(module, class_path, child.name)
        else:
            yield from function_definitions(child, module, class_path)


def constant_names(module: ast.Module) -> Iterator[str]:
    """Yield the names that a module assigns to, without the special ones."""
    for statement in module.body:
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        else:
            continue
        for target in targets:
            for node in ast.walk(target):
                if isinstance(node, ast.Name) and not node.id.startswith("__"):
                    yield node.id


@dataclass
class ProductNames:
    """The words of all modules, with the functions and constants that they define."""

    words: Counter[str]
    functions: list[FunctionDefinition]
    constants: list[tuple[str, str]]  # module and name

    @classmethod
    def read(cls, root: Path) -> "ProductNames":
        """Read the modules below a folder."""
        names = cls(Counter(), [], [])
        for layer in (*LAYERS, *OTHER_USERS):
            for path in sorted((root / layer).rglob("*.py")):
                text = path.read_text()
                names.words.update(WORD.findall(text))
                if layer in LAYERS:
                    module = ".".join(path.relative_to(root).with_suffix("").parts)
                    tree = ast.parse(text)
                    names.functions += function_definitions(tree, module)
                    names.constants += [(module, name) for name in constant_names(tree)]
        names.words.update(WORD.findall((root / "pyproject.toml").read_text()))
        return names


@pytest.fixture(scope="module")
def product_names() -> ProductNames:
    """The names of the product."""
    return ProductNames.read(ROOT)


def unused_functions(names: ProductNames) -> list[str]:
    """Functions whose name occurs nowhere but in definitions of that name."""
    words, definitions = names.words, names.functions
    definition_counts = Counter(definition.name for definition in definitions)
    return [
        definition.path
        for definition in definitions
        if words[definition.name] <= definition_counts[definition.name]
        and not (definition.class_path and CALLBACK.fullmatch(definition.name))
        and not definition.is_override
    ]


def test_every_function_is_used(product_names: ProductNames) -> None:
    assert set(unused_functions(product_names)) <= TEST_ENTRIES


def test_every_constant_is_used(product_names: ProductNames) -> None:
    definition_counts = Counter(name for _, name in product_names.constants)
    unused = [
        f"{module}.{name}"
        for module, name in product_names.constants
        if product_names.words[name] <= definition_counts[name] and name != "_"
    ]
    assert unused == []


def test_override_is_told_from_a_method_with_a_wrong_name() -> None:
    module, owner = "mail.connectors.imap_protocol", ("ImapProtocol",)
    assert FunctionDefinition(module, owner, "_check_bye").is_override
    assert not FunctionDefinition(module, owner, "_require_no_bye").is_override

"""Imports between the modules of the product and between test files, and their sizes."""

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_LINES = 500  # of a file
MAX_MODULES = 25  # of a folder of the product
MAX_TEST_MODULES = 27  # of a folder of tests and benchmarks
LAYERS = ("merganser", "graph", "resolvers", "mail", "models")


def module_name(path: Path) -> str:
    """Dotted name of a module; a package is named as its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.Module) -> set[tuple[str, str]]:
    """Module and name of each import: at the top, in functions and for type checkers only."""
    imports = set[tuple[str, str]]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports are not used"
            imports |= {(node.module, alias.name) for alias in node.names}
    return imports


def import_graph(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Modules that each module imports. An import of a submodule does not import its package."""
    graph = dict[str, set[str]]()
    for importer, tree in trees.items():
        modules = set[str]()
        for module, name in imported_names(tree):
            submodule = f"{module}.{name}"
            modules.add(submodule if submodule in trees else module)
        graph[importer] = (modules & trees.keys()) - {importer}
    return graph


def reachable_modules(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Modules that `start` imports, directly or through others."""
    result, pending = set[str](), [start]
    while pending:
        new = graph[pending.pop()] - result
        result |= new
        pending += new
    return result


def import_cycles(graph: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """Strongly connected components with more than one module."""
    remaining = dict(graph)
    while leaves := {module for module, imported in remaining.items() if not imported}:
        remaining = {module: remaining[module] - leaves for module in remaining.keys() - leaves}
    reachable = {module: reachable_modules(remaining, module) for module in remaining}
    return {
        frozenset(other for other in reachable[module] if module in reachable[other])
        for module in remaining
        if module in reachable[module]
    }


def graphql_type_modules(trees: Mapping[str, ast.Module]) -> set[str]:
    """Modules of `graph` with a class that strawberry decorates."""
    return {
        module
        for module, tree in trees.items()
        if module.startswith("graph.") and any(map(is_graphql_type, tree.body))
    }


def is_graphql_type(node: ast.stmt) -> bool:
    """True if the statement is a class decorated by strawberry."""
    decorators: Iterable[ast.expr] = node.decorator_list if isinstance(node, ast.ClassDef) else ()
    return any(ast.unparse(decorator).startswith("strawberry.") for decorator in decorators)


def is_test_file(module: str) -> bool:
    """True for a test file and for the conftest of a folder, but not for `tests.conftest`."""
    name = module.rpartition(".")[2]
    return module != "tests.conftest" and (name == "conftest" or name.startswith("test_"))


def imported_test_files(trees: Mapping[str, ast.Module]) -> set[tuple[str, str]]:
    """Importer and imported module of each import of a test file."""
    return {
        (importer, module)
        for importer, modules in import_graph(trees).items()
        for module in filter(is_test_file, modules)
    }


def test_only_graphql_types_import_each_other() -> None:
    paths = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
    trees = {module_name(path): ast.parse(path.read_text()) for path in paths}
    cycles = import_cycles(import_graph(trees))
    types = graphql_type_modules(trees)
    unwanted = [sorted(cycle) for cycle in cycles if not cycle <= types]
    assert not unwanted
    assert len(cycles) <= 1, [sorted(cycle) for cycle in cycles]


def test_import_cycles_are_strongly_connected_components() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d", "f"}, "f": set[str]()}
    assert import_cycles({**graph, "g": {"a"}}) == {frozenset("abc"), frozenset("de")}


def test_no_module_imports_a_test_file() -> None:
    paths = [path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py")]
    trees = {module_name(path): ast.parse(path.read_text()) for path in paths}
    assert module_name(Path(__file__)) in filter(is_test_file, trees)
    imports = sorted(imported_test_files(trees))
    assert not imports, "move what is shared to tests/support/"


def test_every_form_of_import_of_a_test_file_is_detected() -> None:
    sources = {
        "tests.conftest": "from tests.support import clients",
        "tests.support.clients": "from tests.conftest import Clock",
        "tests.area.conftest": "import tests.support.clients",
        "tests.area.test_names": "from tests.area.conftest import Place",
        "tests.area.test_module": "from tests.area import test_names",
        "tests.area.test_dotted": "import tests.area.test_names as names",
        "tests.area.test_local": "def load(): from tests.area.test_names import NAME",
    }
    trees = {module: ast.parse(source) for module, source in sources.items()}
    assert imported_test_files(trees) == {
        ("tests.area.test_names", "tests.area.conftest"),
        ("tests.area.test_module", "tests.area.test_names"),
        ("tests.area.test_dotted", "tests.area.test_names"),
        ("tests.area.test_local", "tests.area.test_names"),
    }


def python_files() -> list[Path]:
    """Files of the product, its tests and benchmarks, without the migrations."""
    folders = (*LAYERS, "tests", "bench")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_no_file_has_more_than_500_lines() -> None:
    line_counts = {path: path.read_text().count("\n") for path in python_files()}
    too_long = {str(path): count for path, count in line_counts.items() if count > MAX_LINES}
    assert not too_long, "move a part to a module of its own"


def module_limit(folder: Path) -> int:
    """Largest number of modules of a folder."""
    is_product = folder.relative_to(ROOT).parts[0] in LAYERS
    return MAX_MODULES if is_product else MAX_TEST_MODULES


def test_no_folder_has_too_many_modules() -> None:
    modules = [path for path in python_files() if path.name != "__init__.py"]
    counts = Counter(path.parent for path in modules)
    too_full = {
        str(folder): count for folder, count in counts.items() if count > module_limit(folder)
    }
    assert not too_full, "make a package"

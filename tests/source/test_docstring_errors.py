"""Docstrings name only errors that exist."""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("models", "mail", "resolvers", "graph", "merganser", "bench", "tests")
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# The sentence or half sentence "Raises A, B if ... and C if ...", with the names of its errors.
SENTENCE = re.compile(r"\b[Rr]aises?\s.*?(?:[.;](?=\s|$)|$)", re.DOTALL)
NAME = re.compile(
    r"(?:\b[Rr]aises?|,|\band|\bor)\s+`?(_?[A-Z]\w*[a-z]\w*)(?![\w.]*\.\w)`?(?=[\s,.;:`]|$)"
)
# Words after "and", "or" or a comma in these sentences that are no errors
OTHER_WORDS = {"Sieve"}


def read_trees() -> dict[Path, ast.Module]:
    """Return the syntax trees of all Python files of the project."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT): ast.parse(path.read_text()) for path in paths}


def available_names(trees: dict[Path, ast.Module]) -> set[str]:
    """Return the names of all classes of the project, of Python, and imported from libraries."""
    names = set(dir(builtins))
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in node.names}
    return names


def named_errors(docstring: str) -> Iterator[str]:
    """Yield the names of classes in sentences with "Raises", except dotted names of libraries."""
    for sentence in SENTENCE.findall(docstring):
        yield from (name for name in NAME.findall(sentence) if name not in OTHER_WORDS)


def test_names_of_errors_are_found_in_docstrings() -> None:
    text = "Return a row. Raises NotFound, Forbidden or `_Refused`; raises if it is closed."
    clauses = "Raises NotFound if\nit is gone, and Conflict, below `path`, if it is used. Or None."
    assert list(named_errors(text)) == ["NotFound", "Forbidden", "_Refused"]
    assert list(named_errors(clauses)) == ["NotFound", "Conflict"]
    assert list(named_errors("Raise dns.Timeout or\nOAuth2Error.")) == ["OAuth2Error"]
    assert list(named_errors("Raises if nothing is left.")) == []


def test_docstrings_name_only_errors_that_exist() -> None:
    trees = read_trees()
    names = available_names(trees)
    checked_count, unknown = 0, list[str]()
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, DOCUMENTED):
                continue
            for name in named_errors(ast.get_docstring(node) or ""):
                checked_count += 1
                if name not in names:
                    unknown.append(f"{path}:{getattr(node, 'lineno', 1)} {name}")
    assert checked_count > 500
    assert unknown == []

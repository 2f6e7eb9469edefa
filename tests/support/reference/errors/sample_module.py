"""Small modules of tests, whose errors the static analysis finds."""

import ast
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

from tests.support.reference.errors.code_index import add_module, code_index
from tests.support.reference.errors.error_site import ErrorSite
from tests.support.reference.errors.error_sites import error_sites
from tests.support.reference.errors.reach import reach_of

FindErrors = Callable[[str], set[ErrorSite]]
MODULE_NUMBERS = count()
MODULE_HEAD = """
import asyncio
from contextlib import contextmanager
from models.errors import Conflict, InvalidInput, LimitReached, MultipleErrors, NotFound
from models.errors import RequestError
from models.validation_constraints import ValidationConstraint

def validate_address(text):
    if not text:
        raise InvalidInput(
            "Not an address.", constraint=ValidationConstraint.ADDRESS, path=["address"]
        )

def validate_name(text):
    if not text:
        raise InvalidInput("Too long.", constraint=ValidationConstraint.MAX, path=["name"])
"""


def find_errors_in_source(monkeypatch: pytest.MonkeyPatch) -> Iterator[FindErrors]:
    """A function that returns the errors of the function `change` of a module with a source.

    For a fixture of this name in a test module.
    """
    index, modules = code_index(), list[str]()

    def find(source: str) -> set[ErrorSite]:
        name, text = f"resolvers.sample_{next(MODULE_NUMBERS)}", MODULE_HEAD + dedent(source)
        module = ModuleType(name)
        exec(compile(text, name, "exec"), vars(module))  # noqa: S102 - a source of a test
        monkeypatch.setitem(sys.modules, name, module)
        modules.append(name)
        index.modules.add(name)
        add_module(index, name, ast.parse(text), Path(f"{name}.py"))
        return error_sites(reach_of(f"{name}.change"))

    yield find
    for module_name in modules:
        index.modules.remove(module_name)
        del index.imports[module_name]
        for name in [one for one in index.definitions if one.startswith(f"{module_name}.")]:
            del index.definitions[name]


def rules_and_paths(errors: set[ErrorSite]) -> set[tuple[str, str]]:
    """Return the rule, or else the code, and the path of each error."""
    return {(error.constraint or error.code, error.path) for error in errors}

"""The selection of tests: its lists name tests that exist, and a repetition leaves none out."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.support import item_selection
from tests.support.item_selection import SLOW_CASES, SlowCases
from tests.support.stores import store_fixtures

TESTS = Path(__file__).parents[1]


@cache
def function_names(file: str) -> set[str]:
    """Return the names of the functions of a test file."""
    tree = ast.parse((TESTS / f"{file}.py").read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize("form", SLOW_CASES, ids=lambda form: form.test)
def test_long_form_and_covering_test_exist(form: SlowCases) -> None:
    assert form.cases or form.covered_by
    for test in (form.test, form.covered_by or form.test):
        file, _, name = test.partition("::")
        assert name in function_names(file)


def test_covering_test_is_not_a_long_form() -> None:
    excluded = {form.test for form in SLOW_CASES if not form.cases}
    assert not {form.covered_by for form in SLOW_CASES} & excluded


@pytest.mark.parametrize(
    "name",
    ["LONGEST_FILES", "CI_ONLY_FILES", "POSTGRES_FULL_FILES", "POSTGRES_REDUCED_FILES"],
)
def test_listed_names_are_prefixes_of_test_files(name: str) -> None:
    files = [path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")]
    assert not [
        prefix
        for prefix in getattr(item_selection, name)
        if not any(file.startswith(prefix) for file in files)
    ]


def test_repetition_runs_all_failed_tests(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item for item in request.session.items if item.path == Path(__file__)]
    monkeypatch.setattr(item_selection, "REPEATS_FAILED_TESTS", False)
    monkeypatch.setattr(item_selection, "CI", False)
    monkeypatch.setattr(item_selection, "RUNS_ALL_TESTS", False)
    monkeypatch.setattr(store_fixtures, "STORES", ["sqlite", "postgres"])
    assert item_selection.deselected_items(items)  # outside CI, a sample runs
    monkeypatch.setattr(item_selection, "REPEATS_FAILED_TESTS", True)
    assert item_selection.deselected_items(items) == set()

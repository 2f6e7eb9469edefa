"""The lists of tests/support/item_selection.py name tests that exist."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.support import item_selection
from tests.support.item_selection import LONG_FORMS, LongForm

TESTS = Path(__file__).parents[1]


@cache
def functions(file: str) -> set[str]:
    """The test functions of a file."""
    tree = ast.parse((TESTS / f"{file}.py").read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize("form", LONG_FORMS, ids=lambda form: form.test)
def test_a_long_form_and_the_test_that_covers_it_exist(form: LongForm) -> None:
    assert form.cases or form.covered_by
    for test in (form.test, form.covered_by or form.test):
        file, _, name = test.partition("::")
        assert name in functions(file)


def test_what_covers_a_long_form_is_none() -> None:
    whole = {form.test for form in LONG_FORMS if not form.cases}
    assert not {form.covered_by for form in LONG_FORMS} & whole


@pytest.mark.parametrize("name", ["LONG", "LATER", "WHOLE", "EACH", "NONE"])
def test_each_name_in_a_list_begins_the_path_of_a_test_file(name: str) -> None:
    files = [path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")]
    assert not [
        start
        for start in getattr(item_selection, name)
        if not any(file.startswith(start) for file in files)
    ]

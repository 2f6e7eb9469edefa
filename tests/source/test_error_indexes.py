"""An error about one item of a list has the index of that item in its path."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Errors about the whole list, although a loop finds them.
WHOLE_LIST_ERRORS = {
    # the caller puts the position of the address before the path
    ("resolvers/addresses/bulk_insert.py", "_insert_rows_and_return_errors", "address"),
    # the streams to lock changed, whichever address it was
    ("resolvers/addresses/update.py", "_set_main_addresses", "addresses"),
}


def errors_without_index(source: str) -> Iterator[tuple[str, str]]:
    """Yield the function and list name of errors in loops whose path ends at a list.

    A list is a field with a name in the plural. Both an argument `index` and an index in the path
    are enough.
    """
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        loops = [node for node in ast.walk(function) if isinstance(node, ast.For | ast.AsyncFor)]
        for node in {node for loop in loops for node in ast.walk(loop)}:
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            arguments = {keyword.arg: keyword.value for keyword in node.exc.keywords}
            path = arguments.get("path")
            if "index" in arguments or not isinstance(path, ast.List) or not path.elts:
                continue
            last = path.elts[-1]
            if isinstance(last, ast.Constant) and str(last.value).endswith("s"):
                yield function.name, str(last.value)


def test_error_without_index_is_found() -> None:
    source = """
def f(rows):
    for index, row in enumerate(rows):
        raise Forbidden("x", path=["ids"])
        raise Forbidden("x", path=["ids"], index=index)
        raise Forbidden("x", path=["ids", str(index)])
        raise Forbidden("x", path=["name"])
    raise LimitReached("x", path=["ids"])
"""
    assert list(errors_without_index(source)) == [("f", "ids")]


def test_errors_in_loops_over_lists_have_an_index() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), *error)
        for path in (ROOT / "resolvers").rglob("*.py")
        for error in errors_without_index(path.read_text())
    }
    assert found == WHOLE_LIST_ERRORS

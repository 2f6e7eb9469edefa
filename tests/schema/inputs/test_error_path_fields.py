"""The paths of errors in the code contain only names of input fields and arguments.

`assert_error_paths_exist` compares the errors that tests cause with the inputs. This test also
finds the paths of errors that no test causes.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from graphql import GraphQLInputObjectType, GraphQLInterfaceType, GraphQLObjectType

from tests.support.schema.printed_schema import SDL

ROOT = Path(__file__).parents[3]
LAYERS = ("graph", "mail", "models", "resolvers")
SCIM_PACKAGE = "resolvers/scim"  # its paths are those of SCIM attributes
# Paths of errors that are no errors of a root field.
OTHER_PATHS = {
    ("resolvers/admin/trusted_documents.py", "hashes"),  # an argument of a command
    ("resolvers/transfer/exports.py", "export"),  # a task: the export was deleted
    ("mail/routing/mta_sts.py", "policy"),  # a file of another domain
}


@cache
def input_names() -> frozenset[str]:
    """The names of all input fields and arguments of the schema."""
    names = set[str]()
    for kind in SDL.type_map.values():
        if isinstance(kind, GraphQLInputObjectType):
            names |= kind.fields.keys()
        elif isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            names |= {name for field in kind.fields.values() for name in field.args}
    return frozenset(names)


def unknown_path_parts(source: str) -> Iterator[str]:
    """Yield the literal parts of arguments `path` that name no input field and no argument."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.keyword) or node.arg != "path":
            continue
        for part in node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else ():
            text = part.value if isinstance(part, ast.Constant) else None
            if isinstance(text, str) and not text.isdecimal() and text not in input_names():
                yield text


def test_unknown_part_of_a_path_is_found() -> None:
    source = """
def f(index, name):
    raise Forbidden("x", path=["profile"])
    raise Forbidden("x", path=["set", "generateMobileconfig", "0", str(index), name])
"""
    assert list(unknown_path_parts(source)) == ["profile"]


def test_paths_of_errors_contain_names_of_inputs() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), part)
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        if SCIM_PACKAGE not in path.as_posix()
        for part in unknown_path_parts(path.read_text())
    }
    assert found == OTHER_PATHS

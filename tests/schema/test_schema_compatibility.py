"""Compatibility of the schema with the last release: clients of that release still work.

`tests/schema/released.graphql` is the released schema, with the version in its first line. Before
the first release it is the schema that clients can already use.
"""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphql import GraphQLSchema, build_schema
from graphql.utilities import (
    DangerousChangeType,
    find_breaking_changes,
    find_dangerous_changes,
)

from graph.schema import schema
from tests.support.schema.naming_rules import auth_arguments, own_types

ROOT = Path(__file__).parents[2]
RELEASED = (ROOT / "tests" / "schema" / "released.graphql").read_text()
VERSION = RELEASED.splitlines()[0].removeprefix("# merganser ")

HARMLESS_CHANGES = (  # these changes can only break code that implements resolvers, not clients
    DangerousChangeType.OPTIONAL_ARG_ADDED,
    DangerousChangeType.OPTIONAL_INPUT_FIELD_ADDED,
)
# Breaking and dangerous changes, with the reason for each. `make release` empties the file.
ACCEPTED: dict[str, str] = json.loads(
    (ROOT / "tests" / "schema" / "accepted_changes.json").read_text()
)
ADVICE = f"""
Clients made for {VERSION} can fail on these changes. Add a new field beside the old one, and
deprecate the old one with a reason that names the new one; remove it two minor releases later.
If a break is necessary, enter it in accepted_changes.json with its reason, and in CHANGELOG.md.
`make release` stores the schema, and empties accepted_changes.json.
"""


def client_changes(old: GraphQLSchema, new: GraphQLSchema) -> Iterator[str]:
    """Yield descriptions of the changes that can break clients of `old`."""
    detected: list[Any] = [*find_breaking_changes(old, new), *find_dangerous_changes(old, new)]
    yield from (change.description for change in detected if change.type not in HARMLESS_CHANGES)
    yield from permission_changes(old, new)


def permission_changes(old: GraphQLSchema, new: GraphQLSchema) -> Iterator[str]:
    """Yield changes of `@auth` directives, which graphql-core does not compare."""
    new_kinds = {kind.name: kind for kind in own_types(new)}
    for kind in own_types(old):
        new_kind = new_kinds.get(kind.name)
        if new_kind is None or not hasattr(kind, "fields"):
            continue
        pairs = [(kind.name, kind, new_kind)]
        fields = getattr(new_kind, "fields", {})
        pairs += [
            (f"{kind.name}.{name}", field, fields[name])
            for name, field in kind.fields.items()
            if name in fields
        ]
        for coordinate, old_node, new_node in pairs:
            if auth_arguments(old_node) != auth_arguments(new_node):
                old_rule, new_rule = auth_arguments(old_node), auth_arguments(new_node)
                yield f"{coordinate} asked for {old_rule}, and asks for {new_rule}."


def test_schema_is_compatible_with_last_release() -> None:
    detected = set(client_changes(build_schema(RELEASED), build_schema(schema.as_str())))
    assert detected - set(ACCEPTED) == set(), ADVICE
    assert set(ACCEPTED) - detected == set(), "these changes are not there: remove them"


def test_released_schema_states_its_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    def version_numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".")[:3]]

    assert RELEASED.startswith("# merganser ")
    assert version_numbers(VERSION) <= version_numbers(version)


OLD_SCHEMA = """
directive @auth(role: String, scope: String) on FIELD_DEFINITION | OBJECT
type Query { user(id: ID): User @auth(role: "USER") }
type User @auth(scope: "MAIL") { name: String! age: Int @auth(role: "USER") colour: Colour }
enum Colour { RED }
"""


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("age: Int @auth", "years: Int @auth", "Field User.age was removed."),
        ("name: String!", "name: String", "Field User.name changed type from String! to String."),
        ("id: ID", "id: ID!", "Argument Query.user(id:) has changed type from ID to ID!."),
        ("id: ID", "id: ID, of: Int!", "A required argument Query.user(of:) was added."),
        ("{ RED }", "{ BLUE }", "Enum value Colour.RED was removed."),
        ("{ RED }", "{ RED BLUE }", "Enum value Colour.BLUE was added."),
        ("id: ID", "id: ID = 1", None),
        ("id: ID", "id: ID, of: Int", None),
        ("name: String!", "name: String! more: Int", None),
        ("name: String!", 'name: String! @deprecated(reason: "use `more`") more: Int', None),
        (
            'age: Int @auth(role: "USER")',
            'age: Int @auth(role: "ADMIN")',
            "User.age asked for {'role': 'USER'}, and asks for {'role': 'ADMIN'}.",
        ),
        (
            'User @auth(scope: "MAIL")',
            "User",
            "User asked for {'scope': 'MAIL'}, and asks for {}.",
        ),
    ],
)
def test_breaking_changes_are_detected(before: str, after: str, expected: str | None) -> None:
    assert before in OLD_SCHEMA
    new_schema = build_schema(OLD_SCHEMA.replace(before, after))
    detected = list(client_changes(build_schema(OLD_SCHEMA), new_schema))
    assert (expected in detected) if expected else (detected == []), detected

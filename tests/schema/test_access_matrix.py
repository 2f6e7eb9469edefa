"""Access to every root field and guarded field by every kind of caller (access_matrix.toml)."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphql import (
    GraphQLArgument,
    GraphQLField,
    GraphQLNonNull,
)

from graph.app import create_app
from models.runtime.environment import Environment
from tests.support.schema.access_matrix import (
    BOOTSTRAP_KEY,
    CALLERS,
    CALLERS_BY_CLASS,
    DEFAULT_REFUSALS,
    FIELD_RULES,
    OBJECT_OWNERS,
    OBJECT_QUERIES,
    OPERATION_BY_ROOT_TYPE,
    field_coordinates,
    make_credentials,
    request_verdict,
    subscription_verdict,
)
from tests.support.schema.printed_schema import SDL
from tests.support.schema.sample_inputs import sample_input, sample_selection

# one of several arguments must be given
REQUIRED_ALTERNATIVES = {("filterTest", "raw"), ("messageTrace", "queueId")}
TEXT_ARGUMENTS = {"address": "ada@example.org"}  # arguments that accept no other text


def is_required(value: GraphQLArgument) -> bool:
    """True if the argument must be given."""
    default = getattr(value.ast_node, "default_value", None)
    return isinstance(value.type, GraphQLNonNull) and default is None


def build_operation(kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """Return an operation that selects the field, and its variables."""
    parent: Any = SDL.type_map[kind]
    field: GraphQLField = parent.fields[name]
    needed: dict[str, GraphQLArgument] = {
        argument: value
        for argument, value in field.args.items()
        if is_required(value) or argument == "input" or (name, argument) in REQUIRED_ALTERNATIVES
    }
    definitions = ", ".join(
        f"${argument_name}: {value.type}" for argument_name, value in needed.items()
    )
    arguments = ", ".join(f"{argument_name}: ${argument_name}" for argument_name in needed)
    selection = f"{name}{f'({arguments})' if arguments else ''} {sample_selection(field)}"
    variables = {
        argument_name: TEXT_ARGUMENTS.get(argument_name) or sample_input(value.type)
        for argument_name, value in needed.items()
    }
    head = f"({definitions})" if definitions else ""
    if kind in OPERATION_BY_ROOT_TYPE:
        return f"{OPERATION_BY_ROOT_TYPE[kind]}{head} {{ {selection} }}", variables
    return f"query{head} {{ {OBJECT_QUERIES[kind].replace('FIELD', selection)} }}", variables


@pytest.fixture
async def server(environment: Environment, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(environment, spool_folder=tmp_path, bootstrap_key=BOOTSTRAP_KEY)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://test"
    ) as client:
        yield client


def test_every_field_has_an_access_rule() -> None:
    coordinates = {f"{kind}.{name}" for kind, name in field_coordinates()}
    assert coordinates == set(FIELD_RULES)
    assert set(FIELD_RULES.values()) <= set(CALLERS_BY_CLASS)
    assert set(CALLERS) >= set().union(*CALLERS_BY_CLASS.values())


async def test_fields_are_accessible_as_in_access_matrix(
    environment: Environment, server: httpx.AsyncClient
) -> None:
    credentials = await make_credentials(environment, server)
    assert set(credentials) == set(CALLERS)
    failures = []
    for kind, name in field_coordinates():
        text, variables = build_operation(kind, name)
        allowed = CALLERS_BY_CLASS[FIELD_RULES[f"{kind}.{name}"]]
        for caller, secret in credentials.items():
            operation = text.replace("WHOSE", OBJECT_OWNERS.get(kind, {}).get(caller, "ada"))
            if kind == "Subscription":
                code = await subscription_verdict(environment, secret, operation, variables)
            else:
                code = await request_verdict(server, secret, operation, variables)
            expected = "ALLOWED" if caller in allowed else DEFAULT_REFUSALS.get(caller, "FORBIDDEN")
            if code != expected:
                failures.append((f"{kind}.{name}", caller, code))
    assert not failures

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

ALSO = {("filterTest", "raw"), ("messageTrace", "queueId")}  # of several one must be given
NAMED = {"address": "ada@example.org"}  # arguments that take no other text


def needs(value: GraphQLArgument) -> bool:
    """Whether an argument must be given."""
    default = getattr(value.ast_node, "default_value", None)
    return isinstance(value.type, GraphQLNonNull) and default is None


def document(kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """An operation that uses the field, and its variables."""
    parent: Any = SDL.type_map[kind]
    field: GraphQLField = parent.fields[name]
    needed: dict[str, GraphQLArgument] = {
        argument: value
        for argument, value in field.args.items()
        if needs(value) or argument == "input" or (name, argument) in ALSO
    }
    declared = ", ".join(f"${one}: {value.type}" for one, value in needed.items())
    handed = ", ".join(f"{one}: ${one}" for one in needed)
    asked = f"{name}{f'({handed})' if handed else ''} {sample_selection(field)}"
    variables = {one: NAMED.get(one) or sample_input(value.type) for one, value in needed.items()}
    head = f"({declared})" if declared else ""
    if kind in OPERATION_BY_ROOT_TYPE:
        return f"{OPERATION_BY_ROOT_TYPE[kind]}{head} {{ {asked} }}", variables
    return f"query{head} {{ {OBJECT_QUERIES[kind].replace('FIELD', asked)} }}", variables


@pytest.fixture
async def server(world: Environment, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(world, spool_folder=tmp_path, bootstrap_key=BOOTSTRAP_KEY)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://test"
    ) as client:
        yield client


def test_every_field_has_its_decision() -> None:
    there = {f"{kind}.{name}" for kind, name in field_coordinates()}
    assert there == set(FIELD_RULES)
    assert set(FIELD_RULES.values()) <= set(CALLERS_BY_CLASS)
    assert set(CALLERS) >= set().union(*CALLERS_BY_CLASS.values())


async def test_who_may_use_what(world: Environment, server: httpx.AsyncClient) -> None:
    shown = await make_credentials(world, server)
    assert set(shown) == set(CALLERS)
    wrong = []
    for kind, name in field_coordinates():
        text, variables = document(kind, name)
        allowed = CALLERS_BY_CLASS[FIELD_RULES[f"{kind}.{name}"]]
        for caller, secret in shown.items():
            asked = text.replace("WHOSE", OBJECT_OWNERS.get(kind, {}).get(caller, "ada"))
            if kind == "Subscription":
                code = await subscription_verdict(world, secret, asked, variables)
            else:
                code = await request_verdict(server, secret, asked, variables)
            expected = "ALLOWED" if caller in allowed else DEFAULT_REFUSALS.get(caller, "FORBIDDEN")
            if code != expected:
                wrong.append((f"{kind}.{name}", caller, code))
    assert not wrong

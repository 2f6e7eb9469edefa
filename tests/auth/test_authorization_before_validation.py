"""Callers who may not use a field learn that, whatever is wrong with its arguments."""

from typing import Any

import httpx
import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLList,
    GraphQLNonNull,
)

from models.runtime.environment import Environment
from tests.support.schema.access_matrix import (
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
from tests.support.schema.sample_inputs import SCALAR_SAMPLES, sample_selection

ODD = {"ID": "!", "Int": -1, "String": "", "EmailAddress": "a@example.org"}  # what types let pass
CALLERS = ("nobody", "user", "bare", "smtp", "domain-bare")


def odd(kind: Any) -> Any:
    """A value that passes the type and no other check, as far as the type allows one."""
    if isinstance(kind, GraphQLNonNull):
        return odd(kind.of_type)
    if isinstance(kind, GraphQLList):
        return []
    if isinstance(kind, GraphQLEnumType):
        return next(iter(kind.values))
    if not isinstance(kind, GraphQLInputObjectType):
        return ODD.get(kind.name, SCALAR_SAMPLES[kind.name])
    if kind.is_one_of:
        first = next(iter(kind.fields))
        return {first: odd(kind.fields[first].type)}
    members = {name: member.type for name, member in kind.fields.items()}
    made = {
        name: odd(of) if isinstance(of, GraphQLNonNull) else None for name, of in members.items()
    }
    return {**made, **({"options": {"idempotencyKey": "\n"}} if "options" in members else {})}


def document(kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """An operation that gives each argument of the field an odd value."""
    parent: Any = SDL.type_map[kind]
    field: GraphQLField = parent.fields[name]
    declared = ", ".join(f"${one}: {value.type}" for one, value in field.args.items())
    handed = ", ".join(f"{one}: ${one}" for one in field.args)
    asked = f"{name}{f'({handed})' if handed else ''} {sample_selection(field)}"
    given = {one: odd(value.type) for one, value in field.args.items()}
    head = f"({declared})" if declared else ""
    if kind in OPERATION_BY_ROOT_TYPE:
        return f"{OPERATION_BY_ROOT_TYPE[kind]}{head} {{ {asked} }}", given
    return f"query{head} {{ {OBJECT_QUERIES[kind].replace('FIELD', asked)} }}", given


async def test_authorization_comes_before_checks_of_arguments(
    world: Environment, http: httpx.AsyncClient
) -> None:
    shown = await make_credentials(world, http)
    wrong = []
    for kind, name in field_coordinates():
        text, variables = document(kind, name)
        for caller in CALLERS:
            if caller in CALLERS_BY_CLASS[FIELD_RULES[f"{kind}.{name}"]]:
                continue
            asked = text.replace("WHOSE", OBJECT_OWNERS.get(kind, {}).get(caller, "ada"))
            if kind == "Subscription":
                code = await subscription_verdict(world, shown[caller], asked, variables)
            else:
                code = await request_verdict(http, shown[caller], asked, variables)
            if code != DEFAULT_REFUSALS.get(caller, "FORBIDDEN"):
                wrong.append((f"{kind}.{name}", caller, code))
    assert wrong == [], "\n".join(map(str, wrong))


@pytest.mark.parametrize("atomic", ["", "@atomic"])
async def test_a_refusal_is_the_same_in_atomic_requests(
    world: Environment, http: httpx.AsyncClient, atomic: str
) -> None:
    shown = await make_credentials(world, http)
    text = f"""mutation {atomic} {{ domainCreate(input: {{name: "", options: {{
      idempotencyKey: "\\n"}}}}) {{ errors {{ code message path }} }} }}"""
    assert await request_verdict(http, shown["user"], text, {}) == "FORBIDDEN"
    assert await request_verdict(http, None, text, {}) == "UNAUTHENTICATED"

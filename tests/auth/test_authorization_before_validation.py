"""Authorization runs before the validation of arguments."""

from typing import Any

import httpx
import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    get_named_type,
    is_leaf_type,
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

# valid for their types only
ODD_SCALARS = {"ID": "!", "Int": -1, "String": "", "EmailAddress": "a@example.org"}
CALLERS = ("nobody", "user", "bare", "smtp", "domain-bare")


def odd_value(input_type: Any) -> Any:
    """Return a value that passes the type and, as far as possible, no other check."""
    if isinstance(input_type, GraphQLNonNull):
        return odd_value(input_type.of_type)
    if isinstance(input_type, GraphQLList):
        return []
    if isinstance(input_type, GraphQLEnumType):
        return next(iter(input_type.values))
    if not isinstance(input_type, GraphQLInputObjectType):
        return ODD_SCALARS.get(input_type.name, SCALAR_SAMPLES[input_type.name])
    if input_type.is_one_of:
        first = next(iter(input_type.fields))
        return {first: odd_value(input_type.fields[first].type)}
    members = {name: member.type for name, member in input_type.fields.items()}
    required_members = {
        name: odd_value(member_type) if isinstance(member_type, GraphQLNonNull) else None
        for name, member_type in members.items()
    }
    return {
        **required_members,
        **({"options": {"idempotencyKey": "\n"}} if "options" in members else {}),
    }


def make_document(parent_name: str, name: str) -> tuple[str, dict[str, Any]]:
    """Return an operation that gives each argument of the field an odd value."""
    parent: Any = SDL.type_map[parent_name]
    field: GraphQLField = parent.fields[name]
    declarations = ", ".join(f"${argument}: {value.type}" for argument, value in field.args.items())
    argument_list = ", ".join(f"{argument}: ${argument}" for argument in field.args)
    selection = f"{name}{f'({argument_list})' if argument_list else ''} {sample_selection(field)}"
    variables = {argument: odd_value(value.type) for argument, value in field.args.items()}
    head = f"({declarations})" if declarations else ""
    if parent_name in OPERATION_BY_ROOT_TYPE:
        return f"{OPERATION_BY_ROOT_TYPE[parent_name]}{head} {{ {selection} }}", variables
    return f"query{head} {{ {OBJECT_QUERIES[parent_name].replace('FIELD', selection)} }}", variables


async def test_authorization_runs_before_argument_validation(
    environment: Environment, http: httpx.AsyncClient
) -> None:
    credentials = await make_credentials(environment, http)
    mismatches = []
    for parent_name, name in field_coordinates():
        text, variables = make_document(parent_name, name)
        for caller in CALLERS:
            if caller in CALLERS_BY_CLASS[FIELD_RULES[f"{parent_name}.{name}"]]:
                continue
            request_text = text.replace(
                "WHOSE", OBJECT_OWNERS.get(parent_name, {}).get(caller, "ada")
            )
            if parent_name == "Subscription":
                code = await subscription_verdict(
                    environment, credentials[caller], request_text, variables
                )
            else:
                code = await request_verdict(http, credentials[caller], request_text, variables)
            if code != DEFAULT_REFUSALS.get(caller, "FORBIDDEN"):
                mismatches.append((f"{parent_name}.{name}", caller, code))
    assert mismatches == [], "\n".join(map(str, mismatches))


def select_all_fields(payload: GraphQLObjectType) -> str:
    """Return a selection of all fields of a payload, also of those that need a scope."""
    parts = [
        name if is_leaf_type(get_named_type(field.type)) else f"{name} {{ __typename }}"
        for name, field in payload.fields.items()
    ]
    return f"{{ {' '.join(parts)} }}"


async def test_mutation_without_credential_is_null_for_any_selection(
    http: httpx.AsyncClient,
) -> None:
    headers = {"Accept": "application/graphql-response+json"}
    mutations = [
        name
        for parent_name, name in field_coordinates()
        if parent_name == "Mutation"
        and "nobody" not in CALLERS_BY_CLASS[FIELD_RULES[f"Mutation.{name}"]]
    ]
    assert len(mutations) > 150
    for name in mutations:
        text, variables = make_document("Mutation", name)
        field = SDL.type_map["Mutation"].fields[name]  # type: ignore[attr-defined]
        selection = select_all_fields(get_named_type(field.type))
        text = text.replace(sample_selection(field), selection)
        body = {"query": text, "variables": variables}
        response = await http.post("/graphql", json=body, headers=headers)
        assert (name, response.status_code) == (name, 200)
        assert response.json()["data"] == {name: None}
        assert response.json()["errors"][0]["extensions"] == {"code": "UNAUTHENTICATED"}


@pytest.mark.parametrize("atomic", ["", "@atomic"])
async def test_atomic_request_is_refused_before_validation(
    environment: Environment, http: httpx.AsyncClient, atomic: str
) -> None:
    credentials = await make_credentials(environment, http)
    text = f"""mutation {atomic} {{ domainCreate(input: {{name: "", options: {{
      idempotencyKey: "\\n"}}}}) {{ errors {{ code message path }} }} }}"""
    assert await request_verdict(http, credentials["user"], text, {}) == "FORBIDDEN"
    assert await request_verdict(http, None, text, {}) == "UNAUTHENTICATED"

"""Sentences about role, scope, permission and cost at the end of descriptions.

Introspection has no applied directives, so that without these sentences GraphiQL and code
generators would not show who can use a field.
"""

from collections.abc import Iterable
from typing import Any

from graphql import GraphQLInputObjectType, GraphQLInterfaceType, GraphQLObjectType, GraphQLSchema
from strawberry import UNSET

from graph.execution.documents.cost_limits import Cost
from graph.execution.strawberry_definitions import strawberry_definition
from graph.types.fields import Auth
from models.users.roles import Role


def append_requirement_texts(schema: GraphQLSchema) -> None:
    """Append what each guarded type and field requires, and what it costs, to its description."""
    for graphql_type in schema.type_map.values():
        if not isinstance(
            graphql_type, GraphQLObjectType | GraphQLInterfaceType | GraphQLInputObjectType
        ):
            continue
        _append(graphql_type)
        for field in graphql_type.fields.values():
            _append(field)


def _append(definition: Any) -> None:
    directives = getattr(strawberry_definition(definition), "directives", None) or ()
    text = requirement_text(directives)
    if text and not (definition.description or "").endswith(text):
        definition.description = f"{definition.description or ''} {text}".strip()


def requirement_text(directives: Iterable[object]) -> str:
    """Return sentences such as "Requires role ADMIN and scope FULL. Cost: 20." for directives."""
    known = list(directives)
    sentences = [_auth_text(directive) for directive in known if isinstance(directive, Auth)]
    sentences += [_cost_text(directive) for directive in known if isinstance(directive, Cost)]
    return " ".join(filter(None, sentences))


def _cost_text(cost: Cost) -> str:
    if cost.per_item:
        return f"Cost: {cost.weight} for each returned object."
    return f"Cost: {cost.weight}." if cost.weight != 1 else ""


def _auth_text(auth: Auth) -> str:
    role = auth.role or None
    if role is Role.PUBLIC:
        return "Needs no sign-in."
    needs = ["a signed-in user"] if role is Role.USER else [f"role {role}"] if role else []
    needs += [f"scope {auth.scope}"] if auth.scope else []
    text = f"Requires {' and '.join(needs)}." if needs else ""
    for holder, permission in (
        (Role.USER, auth.user_permission),
        (Role.DOMAIN_ADMIN, auth.admin_permission),
    ):
        if permission and permission is not UNSET:
            text += f" A {holder} also needs the permission {permission}."
    return text.strip()

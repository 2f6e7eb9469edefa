"""Sentences about role, scope, permission, access, cost and errors at the end of descriptions.

Introspection has no applied directives, so that without these sentences GraphiQL and code
generators would not show who can use a field. Payloads have one type for all errors, so that
without the codes they would not show which errors a mutation returns.
"""

from collections.abc import Iterable
from typing import Any, cast

from graphql import (
    GraphQLArgument,
    GraphQLField,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    get_named_type,
)
from strawberry import UNSET

from graph.execution.documents.cost_limits import Cost
from graph.execution.strawberry_definitions import strawberry_definition
from graph.types.descriptions.mutation_error_codes import ERROR_CODES_BY_MUTATION
from graph.types.fields import Auth
from graph.types.object_access import ObjectAccess, access_text, argument_access_text
from models.users.roles import Role, Scope
from resolvers.viewer import GuardRule

USER_REFERENCES = ("UserRef", "UserSelection")
FIELD_NOUNS = {"Query": "query", "Mutation": "mutation", "Subscription": "subscription"}


def append_requirement_texts(schema: GraphQLSchema) -> None:
    """Append what each guarded type and field requires, and what it costs, to its description.

    Mutations also list the codes of their errors. Arguments and input fields that name users also
    say who can name others.
    """
    for graphql_type in schema.type_map.values():
        if not isinstance(
            graphql_type, GraphQLObjectType | GraphQLInterfaceType | GraphQLInputObjectType
        ):
            continue
        noun = FIELD_NOUNS.get(graphql_type.name, "field")
        _append_requirement_text(graphql_type, noun)
        is_mutation = noun == FIELD_NOUNS["Mutation"]
        for name, field in graphql_type.fields.items():
            error_codes = ERROR_CODES_BY_MUTATION.get(name, ()) if is_mutation else ()
            _append_requirement_text(field, noun, error_codes_text(error_codes))
            if access := declared_access_or_none(field):
                _append_to_user_members(field, access)


def _append_requirement_text(definition: Any, noun: str, last_sentence: str = "") -> None:
    strawberry_field = strawberry_definition(definition)
    directives = getattr(strawberry_field, "directives", None) or ()
    access = declared_access_or_none(definition)
    metadata = getattr(strawberry_field, "metadata", None) or {}
    requirements = requirement_text(
        directives,
        access,
        noun,
        metadata.get("signed_in_rule"),
        further_scope=metadata.get("further_scope"),
    )
    text = f"{requirements} {last_sentence}".strip()
    if text and not (definition.description or "").endswith(text):
        definition.description = f"{definition.description or ''} {text}".strip()


def error_codes_text(error_codes: Iterable[str]) -> str:
    """Return a sentence such as "Errors: CONFLICT, STALE."; an empty text without codes."""
    codes = ", ".join(error_codes)
    return f"Errors: {codes}." if codes else ""


def _append_to_user_members(field: GraphQLField, access: ObjectAccess) -> None:
    """Append who can name other users to the arguments or input fields of a field that do so."""
    role = _lowest_role(getattr(strawberry_definition(field), "directives", None) or ())
    members: dict[str, GraphQLArgument | GraphQLInputField] = {**field.args}
    if argument := field.args.get("input"):
        input_type = cast(GraphQLInputObjectType, get_named_type(argument.type))
        members |= input_type.fields
    for member in members.values():
        type_name = get_named_type(member.type).name
        if type_name in USER_REFERENCES:
            text = argument_access_text(access, role, is_plural=type_name == "UserSelection")
            if not (member.description or "").endswith(text):
                member.description = f"{member.description or ''} {text}".strip()


def declared_access_or_none(definition: Any) -> ObjectAccess | None:
    """Return the access that a field declares; None for a type, or a field that declares none."""
    metadata = getattr(strawberry_definition(definition), "metadata", None) or {}
    access: ObjectAccess | None = metadata.get("access")
    return access


def requirement_text(
    directives: Iterable[object],
    access: ObjectAccess | None = None,
    noun: str = "field",
    signed_in_rule: GuardRule | None = None,
    *,
    further_scope: Scope | None = None,
) -> str:
    """Return sentences such as "Requires scope FULL. Cost: 20 points." for directives.

    `signed_in_rule` is the rule of a public field for callers that have completed their sign-in.
    `further_scope` is a scope that is required besides that of the directive.
    """
    all_directives = list(directives)
    rules = [directive for directive in all_directives if isinstance(directive, Auth)]
    sentences = [_auth_text(rule, signed_in_rule, further_scope) for rule in rules]
    if access:
        sentences.append(access_text(access, _lowest_role(rules), noun))
    sentences += [
        _cost_text(directive) for directive in all_directives if isinstance(directive, Cost)
    ]
    return " ".join(filter(None, sentences))


def _lowest_role(directives: Iterable[object]) -> Role:
    """Return the lowest role that can use a field with these directives."""
    rules = [directive for directive in directives if isinstance(directive, Auth)]
    return next((rule.role for rule in rules if rule.role), Role.USER)


def _cost_text(cost: Cost) -> str:
    if cost.per_item:
        return f"Cost: {cost.weight} points for each returned object."
    size_text = f"Default page size: {cost.default_page_size}." if cost.default_page_size else ""
    cost_text = f"Cost: {cost.weight} points." if cost.weight != 1 else ""
    return f"{cost_text} {size_text}".strip()


def _auth_text(auth: Auth, signed_in_rule: GuardRule | None, further_scope: Scope | None) -> str:
    role = auth.role or None
    if role is Role.PUBLIC and signed_in_rule:
        return (
            "Requires the access token of a sign-in that lacks its second factor, or a credential "
            f"with scope {signed_in_rule.scope}."
        )
    if role is Role.PUBLIC:
        return "Requires no credential."
    needs = ["a signed-in user"] if role is Role.USER else [f"role {role}"] if role else []
    if auth.scope:
        scopes = f"scopes {auth.scope} and {further_scope}" if further_scope else None
        needs.append(scopes or f"scope {auth.scope}")
    text = f"Requires {' and '.join(needs)}." if needs else ""
    permissions = (
        None if permission is UNSET else permission
        for permission in (auth.user_permission, auth.admin_permission)
    )
    return " ".join([text, *permission_sentences(*permissions)]).strip()


def permission_sentences(user_permission: str | None, admin_permission: str | None) -> list[str]:
    """Return the sentences about the permission that each of the two roles needs."""
    roles_by_permission: dict[str, list[str]] = {}
    for role, permission in (
        (Role.USER, user_permission),
        (Role.DOMAIN_ADMIN, admin_permission),
    ):
        if permission:
            roles_by_permission.setdefault(permission, []).append(role)
    return [
        f"A {' or '.join(roles)} also needs the permission {permission}."
        for permission, roles in roles_by_permission.items()
    ]

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
    is_list_type,
    is_non_null_type,
)
from strawberry import UNSET

from graph.execution.documents.cost_limits import Cost
from graph.execution.strawberry_definitions import strawberry_definition
from graph.types.access_grants import gives_access
from graph.types.descriptions.mutation_error_codes import ERROR_CODES_BY_MUTATION
from graph.types.fields import Auth
from graph.types.object_access import ObjectAccess, Reach, access_text, argument_access_text
from models.users.roles import Role, Scope
from resolvers.viewer import GuardRule

USER_REFERENCES = ("UserRef", "UserSelection")
FIELD_NOUNS = {"Query": "query", "Mutation": "mutation", "Subscription": "subscription"}
DEFAULT_USER_SENTENCE = "Default: the signed-in user."
NO_DEFAULT_USER_SENTENCE = "An API key without a user has no default (FORBIDDEN)."
# Fields without declared access that work on the account of the caller. They refuse an API key
# without a user, as all mutations and subscriptions do that can only be used for the own account.
FIELDS_OF_SIGNED_IN_USER = {
    "composeRequested",
    "fileUpload",
    "labelCreate",
    "labelDelete",
    "labelUpdate",
    "recoveryCodesCreate",
    "savedSearchCreate",
    "savedSearchDelete",
    "savedSearchUpdate",
}


def append_requirement_texts(schema: GraphQLSchema) -> None:
    """Append what each guarded type and field requires, and what it costs, to its description.

    Mutations also list the codes of their errors. Arguments and input fields that name users also
    say who can name others. Input fields that give access say who can't set them.
    """
    for graphql_type in schema.type_map.values():
        if not isinstance(
            graphql_type, GraphQLObjectType | GraphQLInterfaceType | GraphQLInputObjectType
        ):
            continue
        noun = FIELD_NOUNS.get(graphql_type.name, "field")
        _append_requirement_text(graphql_type, noun)
        if isinstance(graphql_type, GraphQLInputObjectType):
            for input_field in graphql_type.fields.values():
                _append_sentence(input_field, access_grant_text(input_field))
        is_mutation = noun == FIELD_NOUNS["Mutation"]
        for name, field in graphql_type.fields.items():
            error_codes = ERROR_CODES_BY_MUTATION.get(name, ()) if is_mutation else ()
            _append_requirement_text(
                field,
                noun,
                error_codes_text(error_codes),
                needs_user=needs_signed_in_user(name, field, noun),
            )
            if access := declared_access_or_none(field):
                _append_to_user_members(field, access)


def _append_requirement_text(
    definition: Any, noun: str, last_sentence: str = "", *, needs_user: bool = False
) -> None:
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
        needs_user=needs_user,
    )
    _append_sentence(definition, f"{requirements} {last_sentence}".strip())


def _append_sentence(definition: Any, text: str) -> None:
    """Append a text to a description that does not end with it."""
    if text and not (definition.description or "").endswith(text):
        definition.description = f"{definition.description or ''} {text}".strip()


def needs_signed_in_user(name: str, field: Any, noun: str) -> bool:
    """True if a field can't be used by an API key without a user.

    Queries of the own account return such a key nothing.
    """
    access = declared_access_or_none(field)
    is_own = access is not None and access.reach in (Reach.OWN, Reach.OWN_OR_SHARED)
    return name in FIELDS_OF_SIGNED_IN_USER or (
        is_own and noun in (FIELD_NOUNS["Mutation"], FIELD_NOUNS["Subscription"])
    )


def access_grant_text(field: GraphQLInputField) -> str:
    """Return who can't set an input field that gives access to mail; empty for other fields."""
    definition = strawberry_definition(field)
    if definition is None or not gives_access(definition):
        return ""
    if "who acts as" in (field.description or ""):
        return ""
    is_optional, is_list = not is_non_null_type(field.type), is_list_type(field.type)
    subject = "A list that is not empty is " if is_list else "A value is " if is_optional else ""
    return f"{subject}FORBIDDEN for an administrator who acts as the user (`userImpersonate`)."


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
            if DEFAULT_USER_SENTENCE in (member.description or ""):
                _append_default_of_keys(member)
            text = argument_access_text(access, role, is_plural=type_name == "UserSelection")
            _append_sentence(member, text)


def _append_default_of_keys(member: GraphQLArgument | GraphQLInputField) -> None:
    """Append what an API key without a user gets, unless the description tells it."""
    description = member.description or ""
    if NO_DEFAULT_USER_SENTENCE not in description and "without a user" not in description:
        member.description = f"{description} {NO_DEFAULT_USER_SENTENCE}"


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
    needs_user: bool = False,
) -> str:
    """Return sentences such as "Requires role ADMIN. Cost: 20 points." for directives.

    `signed_in_rule` is the rule of a public field for callers that have completed their sign-in.
    `further_scope` is a scope that is required besides that of the directive. `needs_user` is True
    if the resolver refuses an API key without a user.
    """
    all_directives = list(directives)
    rules = [directive for directive in all_directives if isinstance(directive, Auth)]
    sentences = [
        _auth_text(rule, signed_in_rule, further_scope, needs_user=needs_user) for rule in rules
    ]
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


def _auth_text(
    auth: Auth,
    signed_in_rule: GuardRule | None,
    further_scope: Scope | None,
    *,
    needs_user: bool,
) -> str:
    role = auth.role or None
    if role is Role.PUBLIC and signed_in_rule:
        return (
            "Requires the access token of a sign-in that lacks its second factor, or a credential "
            f"with scope {signed_in_rule.scope}."
        )
    if role is Role.PUBLIC:
        return "Requires no credential."
    needs = "a credential" if role is Role.USER else f"role {role}" if role else ""
    if needs_user:
        needs = "a signed-in user"
    if auth.scope:
        scopes = f"scopes {auth.scope} and {further_scope}" if further_scope else None
        conjunction = "with" if needs == "a credential" else "and" if needs else ""
        needs = f"{needs} {conjunction} {scopes or f'scope {auth.scope}'}".strip()
    text = f"Requires {needs}." if needs else ""
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

"""Descriptions say what role, scope and permission a field needs, for whom, and what it costs."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from graphql import DirectiveNode, GraphQLObjectType, get_named_type, parse, print_ast
from graphql.language import ast

from graph.types.descriptions.mutation_error_codes import ERROR_CODES_BY_MUTATION
from graph.types.descriptions.replay_descriptions import NEVER_REPLAYED
from graph.types.fields import Auth
from graph.types.object_access import (
    MANAGED,
    MANAGED_OR_DOMAINS,
    OVERSEEN,
    OWN,
    OWN_OR_ROOT,
    ObjectAccess,
    Reach,
    access_text,
    argument_access_text,
)
from graph.types.requirement_texts import (
    FIELD_NOUNS,
    FIELDS_OF_SIGNED_IN_USER,
    error_codes_text,
)
from graph.users.column_requirements import column_requirement
from graph.users.part_types import SPAM_COLUMNS
from graph.users.update_mutations import LIMIT_COLUMNS
from models.errors import ErrorCode
from models.users.roles import AdminPermission, Role, Scope
from tests.conftest import GraphQLClient
from tests.support.reference.areas import iter_root_fields
from tests.support.reference.error_codes import UNLISTED_CODES, module_text
from tests.support.reference.errors.documented_errors import documented_errors
from tests.support.reference.errors.reach import reach_of
from tests.support.reference.errors.root_field_errors import (
    UNUSED_FUNCTIONS,
    common_mutation_errors,
)
from tests.support.schema.access_matrix import ACCESS_MATRIX
from tests.support.schema.declared_access import (
    TYPES_WITH_ACCESS,
    declared_access_by_coordinate,
    guard_of,
)
from tests.support.schema.printed_schema import SCHEMA_TEXT, SDL

NO_TEXT = {"role": {"USER", "PUBLIC"}, "weight": {"1"}, "perItem": {"false"}}
# Their own descriptions say whose data they can be used for.
FIELDS_WITH_OWN_ACCESS_TEXT = {
    "Mutation.userAffinitySet", "Mutation.authCacheFlush",
    "Mutation.cacheClean", "Mutation.cacheFlush", "Mutation.cacheRemove",
    "Mutation.domainDelete", "Mutation.domainRename", "Mutation.identityProviderDelete",
    "Mutation.identityProviderSet", "Mutation.identityProviderTest",
    "Mutation.domainUpdate", "Mutation.legalHoldEnd", "Mutation.taskCancel", "Query.legalHold",
    "Query.legalHolds", "Query.node", "Query.nodes", "Query.resource",
    "Query.resources", "Query.task", "Query.tasks", "Subscription.taskProgress",
}  # fmt: skip
# Mutations of other users' settings for which the scope of the own settings is enough, and why.
SETTINGS_OF_OTHERS_WITHOUT_FULL: dict[str, str] = {}
INTROSPECTION = """query ($type: String!) {
  __type(name: $type) { description fields { name description } inputFields { name description } }
}"""


def directives_by_coordinate() -> Iterator[tuple[str, str, list[DirectiveNode]]]:
    """Yield type, field (empty for the type) and directives of the printed schema."""
    for definition in parse(SCHEMA_TEXT).definitions:
        if isinstance(definition, ast.ObjectTypeDefinitionNode | ast.InputObjectTypeDefinitionNode):
            yield definition.name.value, "", [*(definition.directives or ())]
            for field in definition.fields or ():
                yield definition.name.value, field.name.value, [*(field.directives or ())]


async def test_introspected_descriptions_contain_all_requirements(ada: GraphQLClient) -> None:
    missing, count = [], 0
    described: dict[str, Any] = {}
    for type_name, field_name, directives in directives_by_coordinate():
        words = [
            print_ast(argument.value)
            for directive in directives
            if directive.name.value in ("auth", "cost")
            for argument in directive.arguments or ()
            if print_ast(argument.value) not in NO_TEXT.get(argument.name.value, ())
        ]
        if not words:
            continue
        if type_name not in described:
            described[type_name] = (await ada(INTROSPECTION, type=type_name))["__type"]
        kind = described[type_name]
        members = [*(kind["fields"] or ()), *(kind["inputFields"] or ()), {**kind, "name": ""}]
        (text,) = [member["description"] for member in members if member["name"] == field_name]
        count += 1
        if any(word not in text for word in words if word != "true"):
            missing.append((type_name, field_name, words, text))
    assert count > 100
    assert not missing


def allowed_relations(access: ObjectAccess, guard: Auth) -> dict[str, set[str]]:
    """The callers and relations of the access matrix that a declaration allows."""
    others_of_domain_admin, others_of_admin = {
        Reach.OWN: (set[str](), set[str]()),
        Reach.OWN_OR_SHARED: (set[str](), set[str]()),
        Reach.OWN_OR_ROOT: (set[str](), set[str]()),
        Reach.OWN_OR_ADMINISTRATOR: (set[str](), {"user", "other"}),
        Reach.OWN_OR_OVERSEEN: (set[str](), {"user", "above", "other"}),
        Reach.MANAGED: ({"user"}, {"user", "other"}),
        Reach.MANAGED_OR_DOMAINS: ({"user"}, {"user", "other"}),
        Reach.OVERSEEN_OR_DOMAINS: ({"user"}, {"user", "above", "other"}),
        Reach.OVERSEEN_MAIL: ({"user"}, {"user", "above", "other"}),
        Reach.OVERSEEN: ({"user"}, {"user", "above", "other"}),
        Reach.ACCOUNTS: ({"user", "above"}, {"user", "above", "other"}),
        Reach.DOMAINS: ({"user", "above"}, {"user", "above", "other"}),
    }[access.reach]
    allowed = {
        "user": {"self"},
        "domain-bare": {"self", *(() if access.permissions else others_of_domain_admin)},
        "domain-admin": {"self", *others_of_domain_admin},
        "admin": {"self", *others_of_admin},
        "root-key": {"user", "above", "other"},
    }
    if access.reach in (Reach.OWN, Reach.OWN_OR_SHARED):
        del allowed["root-key"]  # the key has no account
    role = guard.role or Role.USER
    refused = ["user"] if role.includes(Role.DOMAIN_ADMIN) else []
    refused += ["domain-bare", "domain-admin"] if role.includes(Role.ADMIN) else []
    refused += ["domain-bare"] if guard.admin_permission else []
    return {caller: relations for caller, relations in allowed.items() if caller not in refused}


def matrix_classes() -> dict[str, str]:
    """The class of the access matrix of each field, without the variants of mutations."""
    reads, targets = ({}, {})
    for classes in ACCESS_MATRIX["reads"].values():
        reads.update(classes)
    for classes in ACCESS_MATRIX["targets"].values():
        targets.update({f"Mutation.{name}": decision for name, decision in classes.items()})
    return {name: decision for name, decision in (reads | targets).items() if " " not in name}


def test_declared_access_is_that_of_the_access_matrix() -> None:
    """tests/targets/test_target_access.py compares the matrix with a running server."""
    declared, classes, wrong = declared_access_by_coordinate(), matrix_classes(), {}
    for coordinate, access in declared.items():
        expected = {
            caller: set(relations.split())
            for caller, relations in ACCESS_MATRIX["target-classes"][classes[coordinate]].items()
        }
        if allowed_relations(access, guard_of(coordinate)) != expected:
            wrong[coordinate] = (classes[coordinate], access)
    assert not wrong


def test_every_field_that_reaches_other_users_declares_its_access() -> None:
    undeclared = {
        name
        for name, decision in matrix_classes().items()
        if name not in declared_access_by_coordinate()
        and not (name.startswith("User.") and decision in ("record", "domain", "figures"))
    }
    assert undeclared == FIELDS_WITH_OWN_ACCESS_TEXT


@pytest.mark.parametrize(
    ("access", "role", "text"),
    [
        (OWN, Role.USER, "Nobody can use this query for other users."),
        (OWN_OR_ROOT, Role.USER, "Only a ROOT can use this query for other users."),
        (
            MANAGED.with_permissions(AdminPermission.FILTERS),
            Role.USER,
            "A DOMAIN_ADMIN with the permission FILTERS can also use this query for a USER of an "
            "administered domain. An ADMIN can use it for any user without the role ROOT.",
        ),
        (
            MANAGED.with_permissions(AdminPermission.PUSH_CHANNELS, AdminPermission.IMPERSONATE),
            Role.USER,
            "A DOMAIN_ADMIN with the permissions PUSH_CHANNELS and IMPERSONATE can also use this "
            "query for a USER of an administered domain. An ADMIN can use it for any user without "
            "the role ROOT.",
        ),
        (
            OVERSEEN,
            Role.DOMAIN_ADMIN,
            "A DOMAIN_ADMIN can use this query for a USER of an administered domain. An ADMIN can "
            "use it for any user.",
        ),
        (
            MANAGED_OR_DOMAINS.with_scope(Scope.FULL),
            Role.USER,
            "A DOMAIN_ADMIN can also use this query for an administered domain and a USER of it. "
            "An ADMIN can use it for any domain, and any user without the role ROOT. For other "
            "users the credential needs the scope FULL.",
        ),
        (MANAGED, Role.ADMIN, "An ADMIN can use this query for any user without the role ROOT."),
    ],
)
def test_access_texts(access: ObjectAccess, role: Role, text: str) -> None:
    assert access_text(access, role, "query") == text


def test_mutations_of_settings_of_other_users_require_full() -> None:
    """A key with the scope SETTINGS or SIEVE manages the settings of its own account.

    Changes of mail of other users need the scope that is needed for the own mail.
    """
    settings_scopes = (Scope.SETTINGS, Scope.SIEVE)
    own_reaches = (Reach.OWN, Reach.OWN_OR_SHARED)
    without_full = {
        coordinate
        for coordinate, access in declared_access_by_coordinate().items()
        if coordinate.startswith("Mutation.")
        and guard_of(coordinate).scope in settings_scopes
        and access.reach not in own_reaches
        and access.scope is not Scope.FULL
    }
    assert without_full == SETTINGS_OF_OTHERS_WITHOUT_FULL.keys()


async def test_introspected_descriptions_contain_the_access(ada: GraphQLClient) -> None:
    for type_name in TYPES_WITH_ACCESS:
        described = (await ada(INTROSPECTION, type=type_name))["__type"]["fields"]
        text_by_name = {member["name"]: member["description"] for member in described}
        noun = FIELD_NOUNS.get(type_name, "field")
        for coordinate, access in declared_access_by_coordinate().items():
            parent, _, name = coordinate.partition(".")
            if parent == type_name:
                role = guard_of(coordinate).role or Role.USER
                assert access_text(access, role, noun) in text_by_name[name]


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("name", ""),
        ("active", "Requires role DOMAIN_ADMIN and scope FULL."),
        (
            "webmail_access",
            "Requires role DOMAIN_ADMIN and scope FULL. A DOMAIN_ADMIN also needs the permission "
            "WEBMAIL_ACCESS.",
        ),
        (
            "spam_level",
            "A USER or DOMAIN_ADMIN also needs the permission SPAM_POLICY.",
        ),
        (
            "quarantine_notification",
            "A USER also needs the permission QUARANTINE_NOTIFICATION. For other users a "
            "DOMAIN_ADMIN also needs the permission QUARANTINE.",
        ),
    ],
)
def test_fields_of_user_patch_say_who_can_change_them(column: str, text: str) -> None:
    assert column_requirement(column) == text


def test_columns_of_one_patch_field_have_the_same_requirement() -> None:
    assert len({column_requirement(column) for column in SPAM_COLUMNS}) == 1
    assert len({column_requirement(column) for column in LIMIT_COLUMNS}) == 1


@pytest.mark.parametrize(
    ("access", "role", "is_plural", "text"),
    [
        (OWN, Role.USER, False, "Only the signed-in user is accepted."),
        (OWN_OR_ROOT, Role.USER, False, "Another user requires the role ROOT."),
        (MANAGED, Role.USER, True, "Other users require the role DOMAIN_ADMIN."),
        (MANAGED, Role.DOMAIN_ADMIN, True, ""),
        (
            MANAGED.with_scope(Scope.FULL),
            Role.USER,
            True,
            "Other users require the scope FULL and the role DOMAIN_ADMIN.",
        ),
        (
            MANAGED.with_permissions(AdminPermission.FILTERS),
            Role.USER,
            False,
            "Another user requires the role DOMAIN_ADMIN with the permission FILTERS, or the role "
            "ADMIN.",
        ),
        (
            MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
            Role.USER,
            False,
            "Another user requires the scope FULL, and the role DOMAIN_ADMIN with the permission "
            "FILTERS or the role ADMIN.",
        ),
    ],
)
def test_texts_of_arguments_that_name_users(
    access: ObjectAccess, role: Role, is_plural: bool, text: str
) -> None:
    assert argument_access_text(access, role, is_plural=is_plural) == text


def test_arguments_and_inputs_say_who_can_name_other_users() -> None:
    connector: Any = SDL.type_map["ConnectorCreateInput"]
    query: Any = SDL.query_type
    assert connector.fields["user"].description == (
        "User who gets the messages. Default: the signed-in user. An API key without a user has no "
        "default (FORBIDDEN). Another user requires the scope FULL, and the role DOMAIN_ADMIN with "
        "the permission CONNECTORS or the role ADMIN."
    )
    assert query.fields["changes"].args["user"].description == (
        "User whose events are returned. Default: the signed-in user. An API key without a user "
        "has no default (FORBIDDEN). Another user requires the role DOMAIN_ADMIN with the "
        "permission IMPERSONATE, or the role ADMIN."
    )


def test_root_fields_say_whether_they_require_a_user() -> None:
    root_types: list[Any] = [SDL.query_type, SDL.mutation_type, SDL.subscription_type]
    text_by_name = {
        name: field.description for root in root_types for name, field in root.fields.items()
    }
    assert text_by_name.keys() >= FIELDS_OF_SIGNED_IN_USER
    for name, sentence in (
        ("quarantine", "Requires a credential with scope READ."),
        ("submission", "Requires a credential with scope MAIL_READ."),
        ("labelCreate", "Requires a signed-in user and scope MAIL."),
        ("undo", "Requires a signed-in user and scope MAIL."),
        ("notifications", "Requires a signed-in user and scope MAIL_READ."),
        ("taskProgress", "Requires a credential with scope MAIL_READ."),
    ):
        assert sentence in text_by_name[name]


def test_input_fields_that_give_access_name_acting_administrators() -> None:
    refused = "FORBIDDEN for an administrator who acts as the user (`userImpersonate`)."
    for type_name, name, sentence in (
        ("BccRuleCreateInput", "bccTo", refused),
        ("IdentityPatch", "replyTo", f"A value is {refused}"),
        ("UserPatch", "forwardTo", f"A list that is not empty is {refused}"),
    ):
        input_type: Any = SDL.type_map[type_name]
        assert input_type.fields[name].description.endswith(sentence)


def test_filters_say_that_a_condition_is_required() -> None:
    required = "At least one condition that is not null is required."
    for type_name, sentence in (
        ("TaskFilter", required),
        ("QueueFilter", f"{required} An empty text is an error, except in `sender`."),
        ("HeaderMatch", "Condition on a header field of a message. An empty text is an error."),
    ):
        assert (SDL.type_map[type_name].description or "").endswith(sentence)


def test_payloads_of_mutations_without_idempotency_key_are_never_replayed() -> None:
    never = {
        name
        for name, kind in SDL.type_map.items()
        if isinstance(kind, GraphQLObjectType)
        and "replayed" in kind.fields
        and kind.fields["replayed"].description == NEVER_REPLAYED
    }
    assert {"SessionDrainPayload", "ServerStopPayload"} <= never
    assert not never & {"AuthenticatePayload", "UserPayload", "BlobPayload"}


# Codes in descriptions that are no errors of the mutation.
UNLISTED_NAMES: dict[str, set[str]] = {}


async def test_introspected_descriptions_of_mutations_list_their_error_codes(
    ada: GraphQLClient,
) -> None:
    mutations = (await ada(INTROSPECTION, type="Mutation"))["__type"]["fields"]
    descriptions = {member["name"]: member["description"] for member in mutations}
    assert ERROR_CODES_BY_MUTATION.keys() <= descriptions.keys()
    assert "STALE" in ERROR_CODES_BY_MUTATION["keyValueSet"]
    for name, text in descriptions.items():
        codes = ERROR_CODES_BY_MUTATION.get(name, ())
        assert text.endswith(error_codes_text(codes))
        assert text.count("Errors: ") == bool(codes)


def test_codes_that_a_description_names_are_listed() -> None:
    mutations: Any = SDL.mutation_type
    common_codes = {error.code for error in common_mutation_errors()} | {*UNLISTED_CODES}
    unlisted = {}
    for name, field in mutations.fields.items():
        input_type: Any = get_named_type(field.args["input"].type)
        members = {name: field, **input_type.fields}
        listed = {*ERROR_CODES_BY_MUTATION.get(name, ()), *common_codes}
        for member_name, member in members.items():
            words = set(re.findall(r"\b[A-Z_]+\b", member.description or ""))
            if missing := (words & set(ErrorCode)) - listed:
                unlisted[f"{name}.{member_name}"] = missing
    assert unlisted == UNLISTED_NAMES


def test_listed_error_codes_are_those_of_the_reference() -> None:
    """Every test compares the errors of mutations with the pages of the reference."""
    mutations: Any = SDL.mutation_type
    common_codes = {error.code for error in common_mutation_errors()}
    for name in mutations.fields:
        documented = {code for code, _ in documented_errors(name)}
        listed = set(ERROR_CODES_BY_MUTATION.get(name, ()))
        assert listed <= documented
        assert documented - listed <= common_codes, name


def test_unlisted_error_codes_are_those_of_every_mutation() -> None:
    common_codes = {error.code for error in common_mutation_errors()}
    assert set(UNLISTED_CODES) <= common_codes
    assert common_codes - set(UNLISTED_CODES) == {
        ErrorCode.CONFLICT, ErrorCode.FORBIDDEN_OPERATION, ErrorCode.UNAVAILABLE,
    }  # fmt: skip


def test_only_mutations_that_compare_versions_list_stale() -> None:
    """`ifUnchangedSince` is a field of some mutations that run the code of bulk changes."""
    assert {name for name, codes in ERROR_CODES_BY_MUTATION.items() if "STALE" in codes} == {
        "draftSave", "draftSend", "keyValueSet", "messageImport", "messageUpdate", "undo",
    }  # fmt: skip


LISTED_CODES = {
    "dkimKeyCopy": {"LIMIT_REACHED"},
    "messageCopy": {"CONFLICT", "LIMIT_REACHED", "QUOTA_EXCEEDED", "RATE_LIMITED", "UNAVAILABLE"},
    "messageDeduplicate": {"LIMIT_REACHED", "RATE_LIMITED", "UNAVAILABLE"},
    "messageDelete": {"FORBIDDEN_OPERATION", "LIMIT_REACHED", "RATE_LIMITED", "UNAVAILABLE"},
    "messageMove": {"CONFLICT", "LIMIT_REACHED", "QUOTA_EXCEEDED", "RATE_LIMITED", "UNAVAILABLE"},
    "taskCancel": {"FORBIDDEN_OPERATION", "LIMIT_REACHED"},
    "threadUpdate": {"LIMIT_REACHED", "QUOTA_EXCEEDED"},
    "tlsPolicyDelete": {"LIMIT_REACHED"},
    "usersCreateFromFile": {"LIMIT_REACHED"},
}


def test_mutation_lists_no_code_of_other_mutations_or_of_tasks() -> None:
    """These mutations share code with others, or queue or cancel a task that has other errors."""
    assert {name: {*ERROR_CODES_BY_MUTATION[name]} for name in LISTED_CODES} == LISTED_CODES


def test_every_function_that_a_mutation_never_runs_would_be_found() -> None:
    resolvers = {field.name: field.resolver_name for field in iter_root_fields(SDL)}
    for name, functions in UNUSED_FUNCTIONS.items():
        assert set(functions) <= set(reach_of(resolvers[name]).names), name


def test_module_of_error_codes_has_the_form_of_the_formatter() -> None:
    codes = {"labelCreate": ["CONFLICT"], "undo": ["LIMIT_REACHED"] * 7, "userUpdate": ["A", "B"]}
    lines = module_text(codes).partition("= {\n")[2].splitlines()
    assert lines == [
        '    "labelCreate": ("CONFLICT",),',
        '    "undo": (',
        *['        "LIMIT_REACHED",'] * 7,
        "    ),",
        '    "userUpdate": ("A", "B"),',
        "}",
    ]

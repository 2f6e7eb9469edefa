"""An administrator who acts as a user leaves no access behind."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
from graphql import get_named_type, is_input_object_type

from graph.execution.strawberry_definitions import strawberry_definition
from graph.types.access_grants import gives_access
from graph.types.mutations import MutationExecution
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, expand_scopes
from resolvers.auth.authentication import wait_for_background_tasks
from resolvers.auth.credential_makers import IMPERSONATION_SCOPES
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.lists.input_locations import (
    InputLocation,
    input_with_field,
    run_at_location,
    sample_value,
    schema,
)
from tests.support.stores.counter_check import select_rows

IMPERSONATION = """mutation { userImpersonate(input: {user: {username: "ada"}}) {
  token errors { code } } }"""
# types of values that can name another person or server
PARTY_TYPES = {"EmailAddress", "URL", "UserRef", "UserSelection", "WebhookRef", "MailAddressInput"}
# and texts that can contain such names
PARTY_FIELDS = {"content", "forwardTo", "script", "rights"}
# fields with such a value that give no lasting access, by the reason
USER_WHOM_IT_IS_FOR = "names the account of the operation"
ONE_MESSAGE = "addresses one message"
OWN_SERVER = "names the server that mail is fetched from"
HARMLESS_FIELDS = {
    "user": USER_WHOM_IT_IS_FOR,
    "users": USER_WHOM_IT_IS_FOR,
    "sourceUser": USER_WHOM_IT_IS_FOR,
    **dict.fromkeys(
        ("to", "cc", "bcc", "from", "sender", "replyTo", "recipients", "address", "addresses"),
        ONE_MESSAGE,
    ),
    "tokenUrl": OWN_SERVER,
}
NO_FIELD_OF_USERS = "a user can't change it, nor can an administrator who acts as the user"
HARMLESS_KEYS = {
    "addressUpdate:input.set.forwardTo": NO_FIELD_OF_USERS,
    "draftSave:input.set.addAttachments.0.content": ONE_MESSAGE,
    "fileUpload:input.content": "stores a file of the account",
    "messageSend:input.attachments.0.content": ONE_MESSAGE,
}


@dataclass(frozen=True)
class MutationInputField:
    """A field of an input of a mutation that an acting administrator can call."""

    mutation: str
    path: tuple[str, ...]  # of the input that has the field
    input_type: str
    name: str
    named_type: str
    is_grant: bool

    @property
    def key(self) -> str:
        return f"{self.mutation}:{'.'.join((*self.path, self.name))}"

    @property
    def location(self) -> InputLocation:
        return InputLocation("Mutation", self.mutation, self.path, self.input_type)

    @property
    def error_path(self) -> list[str]:
        return [*self.path[1:], self.name]


def callable_mutation_fields() -> Iterator[MutationInputField]:
    """Yield the input fields of all mutations that a token of userImpersonate can call."""
    mutation_type: Any = schema.type_map["Mutation"]
    scopes = expand_scopes(IMPERSONATION_SCOPES)
    for name, field in mutation_type.fields.items():
        (guard,) = (
            extension
            for extension in strawberry_definition(field).extensions
            if isinstance(extension, MutationExecution)
        )
        rule = guard.rule.signed_in or guard.rule
        if Role.USER.includes(rule.role) and (rule.scope is None or rule.scope in scopes):
            yield from _fields_of_input(name, ("input",), field.args["input"].type, ())


def _fields_of_input(
    mutation: str, path: tuple[str, ...], input_type: Any, outer_types: tuple[str, ...]
) -> Iterator[MutationInputField]:
    input_type = get_named_type(input_type)
    if not is_input_object_type(input_type) or input_type.name in outer_types:
        return
    for name, input_field in input_type.fields.items():
        named_type = get_named_type(input_field.type)
        is_grant = gives_access(strawberry_definition(input_field))
        yield MutationInputField(mutation, path, input_type.name, name, named_type.name, is_grant)
        is_list = "[" in str(input_field.type)
        inner_path = (*path, name, "0") if is_list else (*path, name)
        yield from _fields_of_input(
            mutation, inner_path, named_type, (*outer_types, input_type.name)
        )


GRANTS = {field.key: field for field in callable_mutation_fields() if field.is_grant}


def test_every_field_that_names_another_party_is_a_grant_or_harmless() -> None:
    undeclared = [
        field.key
        for field in callable_mutation_fields()
        if (field.named_type in PARTY_TYPES or field.name in PARTY_FIELDS)
        and not field.is_grant
        and field.name not in HARMLESS_FIELDS
        and field.key not in HARMLESS_KEYS
    ]
    assert undeclared == []


def test_known_grants_are_declared() -> None:
    """The grants of the mutations by which a copy of mail leaves the account."""
    assert {field.mutation for field in GRANTS.values()} == {
        "draftSave", "fileShareCreate", "filterCreate", "filterImport", "filterUpdate",
        "filtersCreate", "identityCreate", "identityUpdate", "mailboxShareSet", "userUpdate",
    }  # fmt: skip


async def act_as_ada(administrator: GraphQLClient, ada: GraphQLClient) -> GraphQLClient:
    payload = (await administrator(IMPERSONATION))["userImpersonate"]
    assert payload["errors"] == []
    return replace(ada, secret=payload["token"])


async def set_granting_field(
    client: GraphQLClient, field: MutationInputField
) -> list[tuple[str, Any]]:
    """Set the field with a sample value and return code and path of each error."""
    input_type: Any = schema.type_map[field.input_type]
    value = sample_value(input_type.fields[field.name].type)
    inner = input_with_field(field.location, field.name, value)
    _, errors = await run_at_location([client], field.location, inner)
    return errors


async def test_acting_administrator_can_not_give_access(
    ada: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    keeper = await make_domain_admin(environment, http, "chief", list(AdminPermission))
    admin = await make_client(environment, http, "boss", role=Role.ADMIN)
    acting_clients = [await act_as_ada(administrator, ada) for administrator in (keeper, admin)]
    for case in each_case(GRANTS.values()):
        with case as field:
            refusal = [("FORBIDDEN", field.error_path)]
            for acting in acting_clients:
                assert await set_granting_field(acting, field) == refusal
            assert await set_granting_field(ada, field) != refusal


async def test_refused_attempt_is_in_security_log_of_the_user(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    acting = await act_as_ada(admin_client, ada)
    payload = await execute_mutation(
        acting, "userUpdate", "", set={"forwardTo": ["boss@example.org"]}
    )
    assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
    await wait_for_background_tasks(environment)
    document = """{ viewer { user { securityLog(filter: {action: ACCESS_GRANT_REFUSED}) {
      nodes { result detail } } } } }"""
    (event,) = (await ada(document))["viewer"]["user"]["securityLog"]["nodes"]
    assert event == {"result": "FAILURE", "detail": {"target": "userUpdate: set.forwardTo"}}
    query = "SELECT \"by\" FROM security_events WHERE action = 'ACCESS_GRANT_REFUSED'"
    assert await select_rows(environment, query) == [(admin_client.user.username,)]


async def load_refused_grants(environment: Environment) -> list[tuple[str, int]]:
    """Load target and count of the refused attempts of the security log, in their order."""
    await wait_for_background_tasks(environment)
    query = """SELECT detail, count FROM security_events WHERE action = 'ACCESS_GRANT_REFUSED'
      ORDER BY id"""
    rows = await select_rows(environment, query)
    return [(json.loads(row[0])["target"], row[1]) for row in rows]


# for each case: a mutation with its arguments
REFUSED_MUTATIONS: list[tuple[str, dict[str, Any]]] = [
    ("appPasswordCreate", {"description": "d"}),
    ("apiKeyCreate", {"role": "USER", "name": "k"}),
    ("sieveScriptSet", {"name": "s", "content": "keep;"}),
    (
        "bccRuleCreate",
        {"match": "ada@example.org", "bccTo": "boss@example.org", "direction": "RECIPIENT"},
    ),
    ("webhookCreate", {"url": "https://hooks.example/"}),
]


async def test_refused_change_of_credentials_or_routing_is_in_security_log_of_the_user(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    acting = await act_as_ada(admin_client, ada)
    for case in each_case(REFUSED_MUTATIONS):
        with case as (mutation, arguments):
            grants = await load_refused_grants(environment)
            payload = await execute_mutation(acting, mutation, "", **arguments)
            assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
            assert await load_refused_grants(environment) == [*grants, (mutation, 1)]
            # a mutation that gives no access
            payload = await execute_mutation(acting, "domainCreate", "", name="new.example")
            assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
            assert await load_refused_grants(environment) == [*grants, (mutation, 1)]


async def test_repeated_refused_attempts_share_one_log_entry(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    acting = await act_as_ada(admin_client, ada)
    forward = {"query": {}, "action": {"forwardTo": ["boss@example.org"]}}
    keep = {"query": {}, "action": {"stop": True}}
    for keep_count in range(20):
        payload = await execute_mutation(
            acting, "filtersCreate", "", filters=[*[keep] * keep_count, forward]
        )
        assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
    ((target, count),) = await load_refused_grants(environment)
    assert (target, count) == ("filtersCreate: filters.action.forwardTo", 20)


async def test_acting_administrator_can_end_a_share(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    arguments = {"mailbox": {"path": "INBOX"}, "user": {"username": bob.user.username}}
    payload = await execute_mutation(ada, "mailboxShareSet", "", **arguments, rights=["READ"])
    assert payload["errors"] == []
    acting = await act_as_ada(admin_client, ada)
    payload = await execute_mutation(acting, "mailboxShareSet", "", **arguments, rights=["WRITE"])
    assert [(error["code"], error["path"]) for error in payload["errors"]] == [
        ("FORBIDDEN", ["rights"])
    ]
    payload = await execute_mutation(acting, "mailboxShareSet", "", **arguments, rights=[])
    assert payload["errors"] == []
    assert await select_rows(environment, "SELECT user_id FROM mailbox_shares") == []


async def test_administrator_has_no_access_after_acting_and_losing_its_role(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    admin = await make_client(environment, http, "boss", role=Role.ADMIN)
    acting = await act_as_ada(admin, ada)
    boss = {"username": admin.user.username}
    attacks: list[tuple[str, dict[str, Any]]] = [
        ("mailboxShareSet", {"mailbox": {"path": "INBOX"}, "user": boss, "rights": ["READ"]}),
        ("identityCreate", {"address": "ada@example.org", "bcc": ["boss@example.org"]}),
        ("userUpdate", {"set": {"forwardTo": ["boss@example.org"]}}),
    ]
    for name, arguments in attacks:
        payload = await execute_mutation(acting, name, "", **arguments)
        assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"], name
    payload = await execute_mutation(
        root, "userRoleSet", "", users={"usernames": ["boss"]}, role="USER"
    )
    assert payload["errors"] == []
    response = await acting.execute("{ viewer { user { username } } }")
    assert response["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    for table in ("mailbox_shares", "identities"):
        assert await select_rows(environment, f"SELECT 1 FROM {table}") == []  # noqa: S608

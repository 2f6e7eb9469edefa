"""Credentials and changes that administrators make for users: limits, logs and notices."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from models.auth.credentials import ApiKey
from models.auth.security_log import SecurityEvent
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.admin import tasks
from resolvers.auth.credential_cache import drop_cached_credentials
from tests.conftest import GraphQLClient, ManualClock, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.quarantine_operations import set_options

API_KEY_CREATE = """mutation ($input: ApiKeyCreateInput!) { apiKeyCreate(input: $input) {
  secret apiKey { maker scopes role expiresAt } errors { code path } } }"""
APP_CREATE = """mutation ($input: AppPasswordCreateInput!) { appPasswordCreate(input: $input) {
  password appPassword { maker scopes expiresAt } errors { code path } } }"""
VERIFY_MUTATION = """mutation ($input: PasswordVerifyInput!) { passwordVerify(input: $input) {
  errors { code path } } }"""
RESET_MUTATION = """mutation ($input: UserPasswordResetInput!) { userPasswordReset(input: $input) {
  password errors { code path } } }"""
AUTHENTICATE = """mutation ($input: AuthenticateInput!) { authenticate(input: $input) {
  token passwordChangeRequired errors { code path } } }"""
USER_UPDATE = """mutation ($input: UserUpdateInput!) { userUpdate(input: $input) {
  errors { code path } } }"""
VIEWER_QUERY = "{ viewer { user { username } scopes } }"
MESSAGES_QUERY = "{ messages(first: 5) { totalCount } }"
OLD_PHRASE = "the password until now"
NEW_PHRASE = "correct horse battery staple"


@pytest.fixture
async def domain_admin(environment: Environment, http: Any, ada: GraphQLClient) -> GraphQLClient:
    assert ada.user.id
    return await make_domain_admin(environment, http, "chief", list(AdminPermission))


async def set_permissions(
    client: GraphQLClient, *permissions: AdminPermission, **extra: Any
) -> None:
    """Give an administrator only these permissions."""
    values = {"admin_permissions": [permission.value for permission in permissions], **extra}
    async with client.environment.write_session(client.user.id) as session:
        statement = update(User).where(col(User.id) == client.user.id)
        await (await session.connection()).execute(statement.values(**values))
    drop_cached_credentials(client.environment, client.user.id)


async def create_key_for_ada(domain_admin: GraphQLClient, **extra: Any) -> Any:
    arguments = {"name": "theirs", "user": {"username": "ada"}, **extra}
    return (await domain_admin(API_KEY_CREATE, input=arguments))["apiKeyCreate"]


async def load_data_or_error_code(client: GraphQLClient, document: str = VIEWER_QUERY) -> Any:
    response = await client.execute(document)
    return response["errors"][0]["extensions"]["code"] if "errors" in response else response["data"]


async def test_key_for_other_user_has_the_limits_of_impersonation(
    domain_admin: GraphQLClient, ada: GraphQLClient, clock: ManualClock
) -> None:
    for arguments, refusal in (
        ({"scopes": ["FULL"]}, {"code": "FORBIDDEN", "path": ["scopes"]}),
        ({"role": "DOMAIN_ADMIN"}, {"code": "FORBIDDEN", "path": ["user"]}),
        ({"expiresAt": "2030-01-01T04:00:01Z"}, {"code": "VALIDATION", "path": ["expiresAt"]}),
    ):
        assert (await create_key_for_ada(domain_admin, **arguments))["errors"] == [refusal]
    payload = await create_key_for_ada(domain_admin)
    assert payload["errors"] == []
    api_key = payload["apiKey"]
    assert api_key["maker"] == "chief"
    assert sorted(api_key["scopes"]) == ["MAIL", "READ", "SETTINGS", "SUBMIT"]
    assert api_key["expiresAt"].startswith("2030-01-01T04:00:00")
    key_client = replace(ada, secret=payload["secret"])
    assert (await load_data_or_error_code(key_client))["viewer"]["user"]["username"] == "ada"
    clock.tick(hours=4)
    assert await load_data_or_error_code(key_client) == "UNAUTHENTICATED"


@pytest.mark.parametrize(("key_lifetime", "lifetime"), [(1, 1), (24, 4)])
async def test_key_for_other_user_ends_with_the_key_that_creates_it(
    domain_admin: GraphQLClient, clock: ManualClock, key_lifetime: int, lifetime: int
) -> None:
    async with domain_admin.environment.write_session(domain_admin.user.id) as session:
        statement = update(ApiKey).where(col(ApiKey.user_id) == domain_admin.user.id)
        expires_at = clock() + timedelta(hours=key_lifetime)
        await (await session.connection()).execute(statement.values(expires_at=expires_at))
    payload = await create_key_for_ada(domain_admin)
    assert payload["errors"] == []
    assert payload["apiKey"]["expiresAt"] == f"2030-01-01T{lifetime:02}:00:00Z"


@pytest.mark.parametrize("loss", [{}, {"role": Role.USER}, {"active": False}])
async def test_key_for_other_user_ends_with_right_of_its_maker(
    domain_admin: GraphQLClient, ada: GraphQLClient, loss: dict[str, Any]
) -> None:
    key_client = replace(ada, secret=(await create_key_for_ada(domain_admin))["secret"])
    assert (await load_data_or_error_code(key_client))["viewer"]["user"]["username"] == "ada"
    other_permissions = [
        permission
        for permission in AdminPermission
        if permission is not AdminPermission.IMPERSONATE
    ]
    await set_permissions(
        domain_admin, *(list(AdminPermission) if loss else other_permissions), **loss
    )
    assert await load_data_or_error_code(key_client) == "UNAUTHENTICATED"


async def test_key_for_other_user_cannot_be_extended(
    domain_admin: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    await create_key_for_ada(domain_admin)
    (row,) = await environment.database.read(
        select(col(ApiKey.id)).where(col(ApiKey.name) == "theirs")
    )
    document = """mutation ($input: ApiKeyUpdateInput!) { apiKeyUpdate(input: $input) {
      errors { code path } } }"""
    for expires_at in ("2031-01-01T00:00:00Z", None):
        arguments = {
            "apiKeys": [{"id": global_ids.encode("ApiKey", row.id)}],
            "set": {"expiresAt": expires_at},
        }
        (error,) = (await admin_client(document, input=arguments))["apiKeyUpdate"]["errors"]
        assert error == {"code": "VALIDATION", "path": ["set", "expiresAt"]}


async def test_app_password_for_other_user_is_limited(
    domain_admin: GraphQLClient, ada: GraphQLClient, clock: ManualClock
) -> None:
    arguments: dict[str, Any] = {"user": {"username": "ada"}, "description": "Phone"}
    set_options(domain_admin.environment, profile_imap_server="imap.example.org:993")
    for extra, path in (
        ({"scopes": ["IMAP"]}, "scopes"),
        ({"ttl": "PT5H"}, "ttl"),
        ({"generateMobileconfig": True}, "generateMobileconfig"),
    ):
        (error,) = (await domain_admin(APP_CREATE, input={**arguments, **extra}))[
            "appPasswordCreate"
        ]["errors"]
        assert error["path"] == [path]
    payload = (await domain_admin(APP_CREATE, input={**arguments, "scopes": ["ALL"]}))[
        "appPasswordCreate"
    ]
    assert payload["errors"] == []
    assert payload["appPassword"]["maker"] == "chief"
    assert sorted(payload["appPassword"]["scopes"]) == ["MAIL", "MAIL_READ", "SUBMIT"]
    assert payload["appPassword"]["expiresAt"].startswith("2030-01-01T04:00:00")
    attempt = {"username": "ada", "password": payload["password"], "scope": "MAIL"}
    assert (await ada(VERIFY_MUTATION, input=attempt))["passwordVerify"]["errors"] == []
    other_permissions = [
        permission
        for permission in AdminPermission
        if permission is not AdminPermission.APP_PASSWORDS
    ]
    await set_permissions(domain_admin, *other_permissions)
    (error,) = (await ada(VERIFY_MUTATION, input=attempt))["passwordVerify"]["errors"]
    assert error["code"] == "AUTHENTICATION_FAILED"
    await set_permissions(domain_admin, *AdminPermission)
    clock.tick(hours=4)
    (error,) = (await ada(VERIFY_MUTATION, input=attempt))["passwordVerify"]["errors"]
    assert error["code"] == "AUTHENTICATION_FAILED"


async def test_temporary_password_only_sets_a_new_password(
    environment: Environment, http: Any
) -> None:
    ada = await make_client(environment, http, "ada", password=OLD_PHRASE)
    domain_admin = await make_domain_admin(environment, http, "chief")
    sign_in_input = {"username": "ada", "password": OLD_PHRASE}
    token_before = (await ada(AUTHENTICATE, input=sign_in_input))["authenticate"]["token"]
    reset_payload = (await domain_admin(RESET_MUTATION, input={"user": {"username": "ada"}}))[
        "userPasswordReset"
    ]
    assert reset_payload["errors"] == []
    assert await load_data_or_error_code(replace(ada, secret=token_before)) == "UNAUTHENTICATED"
    arguments = {**sign_in_input, "password": reset_payload["password"]}
    payload = (await ada(AUTHENTICATE, input=arguments))["authenticate"]
    assert payload["passwordChangeRequired"]
    temporary_client = replace(ada, secret=payload["token"])
    assert await load_data_or_error_code(temporary_client, MESSAGES_QUERY) == "FORBIDDEN"
    targets = {"set": {"forwardTo": ["mallory@far.example"]}}
    both_values = {"password": NEW_PHRASE, "name": "Mallory"}
    for patch in (targets, {"set": both_values, "existingPassword": reset_payload["password"]}):
        (error,) = (await temporary_client(USER_UPDATE, input=patch))["userUpdate"]["errors"]
        assert error["code"] == "FORBIDDEN"
    password_change = {
        "set": {"password": NEW_PHRASE},
        "existingPassword": reset_payload["password"],
    }
    assert (await temporary_client(USER_UPDATE, input=password_change))["userUpdate"][
        "errors"
    ] == []
    while await tasks.run_next_task(environment):
        pass
    assert (await load_data_or_error_code(temporary_client, MESSAGES_QUERY))["messages"][
        "totalCount"
    ] == 1  # the notice of the reset
    assert (await ada(AUTHENTICATE, input={**arguments, "password": NEW_PHRASE}))["authenticate"][
        "errors"
    ] == []


async def load_events_by_others(client: GraphQLClient) -> list[tuple[str, str]]:
    """Return the events that others caused, and check that each one has a notice."""
    while await tasks.run_next_task(client.environment):
        pass
    event_query = select(col(SecurityEvent.action), col(SecurityEvent.by)).where(
        col(SecurityEvent.user_id) == client.user.id, col(SecurityEvent.by).is_not(None)
    )
    events = [(row.action, row.by) for row in await client.environment.database.read(event_query)]
    message_query = select(col(Message.id)).where(
        col(Message.user_id) == client.user.id,
        col(Message.subject) == "Your account was changed by an administrator",
    )
    assert len(await client.environment.database.read(message_query)) == len(events)
    return sorted(events)


async def test_admin_changes_are_logged_and_sent_as_notices(
    admin_client: GraphQLClient, ada: GraphQLClient
) -> None:
    user = {"user": {"username": "ada"}}
    users = {"users": {"usernames": ["ada"]}}
    reason_options = {"options": {"reason": "lost phone"}}
    changes = [
        ("userPasswordReset", "UserPasswordResetInput", user),
        ("userUpdate", "UserUpdateInput", {**users, "set": {"forwardTo": ["t@far.example"]}}),
        ("userUpdate", "UserUpdateInput", {**users, "set": {"allowedSenders": ["t@far.example"]}}),
        ("apiKeyCreate", "ApiKeyCreateInput", {**user, "name": "x"}),
        ("appPasswordCreate", "AppPasswordCreateInput", {**user, "description": "x"}),
        ("externalTwoFactorEnable", "ExternalTwoFactorEnableInput", user),
        ("twoFactorDisable", "TwoFactorDisableInput", {**user, **reason_options}),
        ("connectorCreate", "ConnectorCreateInput", {
            **user, "active": False,
            "server": {"host": "imap.far.example", "username": "x", "password": "secret word"},
        }),
        ("bccRuleCreate", "BccRuleCreateInput", {
            "match": ada.address, "bccTo": "copy@far.example", "direction": "RECIPIENT",
        }),
    ]  # fmt: skip
    for name, input_type, arguments in changes:
        errors = "errors { code path message }"
        document = f"mutation ($input: {input_type}!) {{ {name}(input: $input) {{ {errors} }} }}"
        assert (await admin_client(document, input=arguments))[name]["errors"] == [], name
    assert await load_events_by_others(ada) == [
        (action, "over")
        for action in (
            "ALLOWED_SENDERS_CHANGED", "API_KEY_CREATED", "APP_PASSWORD_CREATED",
            "BCC_RULE_CREATED", "CONNECTOR_CREATED", "EXTERNAL_TWO_FACTOR_ENABLED",
            "FORWARDING_CHANGED", "PASSWORD_RESET", "TWO_FACTOR_DISABLED",
        )
    ]  # fmt: skip


async def test_domain_admin_does_not_whitelist_address_of_admin(
    domain_admin: GraphQLClient, admin_client: GraphQLClient, ada: GraphQLClient
) -> None:
    for pattern in (admin_client.address, "*@example.org", "example.org"):
        arguments = {"users": {"usernames": ["ada"]}, "set": {"allowedSenders": [pattern]}}
        (error,) = (await domain_admin(USER_UPDATE, input=arguments))["userUpdate"]["errors"]
        assert (error["code"], error["path"][:2]) == ("FORBIDDEN", ["set", "allowedSenders"])
    arguments = {"users": {"usernames": ["ada"]}, "set": {"allowedSenders": ["bob@example.org"]}}
    assert (await domain_admin(USER_UPDATE, input=arguments))["userUpdate"]["errors"] == []
    assert ada.user.id

"""What administrators make and change for accounts: bounded, logged, and told by mail."""

from dataclasses import replace
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
from resolvers.auth.credential_cache import drop_credentials
from tests.conftest import Client, Clock, make_client
from tests.support.accounts.domain_admins import make_domain_admin

KEY = """mutation ($input: ApiKeyCreateInput!) { apiKeyCreate(input: $input) {
  secret apiKey { maker scopes role expiresAt } errors { code path } } }"""
APP = """mutation ($input: AppPasswordCreateInput!) { appPasswordCreate(input: $input) {
  password appPassword { maker scopes expiresAt } errors { code path } } }"""
RESET = """mutation ($input: PasswordResetInput!) { passwordReset(input: $input) {
  password errors { code path } } }"""
ENTER = """mutation ($input: AuthenticateInput!) { authenticate(input: $input) {
  token requirePasswordChange errors { code path } } }"""
UPDATE = """mutation ($input: UserUpdateInput!) { userUpdate(input: $input) {
  errors { code path } } }"""
ME = "{ viewer { user { username } scopes } }"
MAIL = "{ messages(first: 5) { totalCount } }"
OLD = "the password until now"
NEW = "correct horse battery staple"


@pytest.fixture
async def chief(world: Environment, http: Any, ada: Client) -> Client:
    assert ada.user.id
    return await make_domain_admin(world, http, "chief", list(AdminPermission))


async def permit(client: Client, *permissions: AdminPermission, **more: Any) -> None:
    """Give an administrator these permissions, and no others."""
    values = {"admin_permissions": [each.value for each in permissions], **more}
    async with client.world.write_session(client.user.id) as session:
        this = update(User).where(col(User.id) == client.user.id)
        await (await session.connection()).execute(this.values(**values))
    drop_credentials(client.world, client.user.id)


async def made_key(chief: Client, **more: Any) -> Any:
    given = {"name": "theirs", "user": {"username": "ada"}, **more}
    return (await chief(KEY, input=given))["apiKeyCreate"]


async def status(client: Client, document: str = ME) -> Any:
    answer = await client.raw(document)
    return answer["errors"][0]["extensions"]["code"] if "errors" in answer else answer["data"]


async def test_a_key_for_another_account_is_bounded_like_a_token_of_act_as(
    chief: Client, ada: Client, clock: Clock
) -> None:
    for given, refusal in (
        ({"scopes": ["MASTER"]}, {"code": "FORBIDDEN", "path": ["scopes"]}),
        ({"role": "DOMAIN_ADMIN"}, {"code": "FORBIDDEN", "path": ["user"]}),
        ({"expiresAt": "2030-01-01T04:00:01Z"}, {"code": "VALIDATION", "path": ["expiresAt"]}),
    ):
        assert (await made_key(chief, **given))["errors"] == [refusal]
    made = await made_key(chief)
    assert made["errors"] == []
    key = made["apiKey"]
    assert key["maker"] == "chief"
    assert sorted(key["scopes"]) == ["MAIL", "READ", "SETTINGS", "SUBMIT"]
    assert key["expiresAt"].startswith("2030-01-01T04:00:00")
    theirs = replace(ada, secret=made["secret"])
    assert (await status(theirs))["viewer"]["user"]["username"] == "ada"
    clock.tick(hours=4)
    assert await status(theirs) == "UNAUTHENTICATED"


@pytest.mark.parametrize("loss", [{}, {"role": Role.USER}, {"disabled": True}])
async def test_a_key_for_another_account_ends_with_its_makers_right(
    chief: Client, ada: Client, loss: dict[str, Any]
) -> None:
    theirs = replace(ada, secret=(await made_key(chief))["secret"])
    assert (await status(theirs))["viewer"]["user"]["username"] == "ada"
    rest = [each for each in AdminPermission if each is not AdminPermission.LOGIN_AS]
    await permit(chief, *(list(AdminPermission) if loss else rest), **loss)
    assert await status(theirs) == "UNAUTHENTICATED"


async def test_a_key_for_another_account_is_not_prolonged(
    chief: Client, over: Client, world: Environment
) -> None:
    await made_key(chief)
    (row,) = await world.database.read(select(col(ApiKey.id)).where(col(ApiKey.name) == "theirs"))
    document = """mutation ($input: ApiKeyUpdateInput!) { apiKeyUpdate(input: $input) {
      errors { code path } } }"""
    for end in ("2031-01-01T00:00:00Z", None):
        given = {"ids": [global_ids.encode("ApiKey", row.id)], "expiresAt": end}
        (error,) = (await over(document, input=given))["apiKeyUpdate"]["errors"]
        assert error == {"code": "VALIDATION", "path": ["expiresAt"]}


async def test_an_application_password_for_another_account_is_bounded(
    chief: Client, ada: Client, clock: Clock
) -> None:
    given: dict[str, Any] = {"user": {"username": "ada"}, "description": "Phone"}
    for more, path in (({"scopes": ["IMAP"]}, "scopes"), ({"ttl": "PT5H"}, "ttl")):
        (error,) = (await chief(APP, input={**given, **more}))["appPasswordCreate"]["errors"]
        assert error["path"] == [path]
    made = (await chief(APP, input={**given, "scopes": ["ALL"]}))["appPasswordCreate"]
    assert made["errors"] == []
    assert made["appPassword"]["maker"] == "chief"
    assert sorted(made["appPassword"]["scopes"]) == ["MAIL", "MAIL_READ", "SUBMIT"]
    assert made["appPassword"]["expiresAt"].startswith("2030-01-01T04:00:00")
    attempt = {"username": "ada", "password": made["password"], "scope": "MAIL"}
    assert (await ada(ENTER, input=attempt))["authenticate"]["errors"] == []
    rest = [each for each in AdminPermission if each is not AdminPermission.APP_PASSWDS]
    await permit(chief, *rest)
    (error,) = (await ada(ENTER, input=attempt))["authenticate"]["errors"]
    assert error["code"] == "AUTHENTICATION_FAILED"
    await permit(chief, *AdminPermission)
    clock.tick(hours=4)
    (error,) = (await ada(ENTER, input=attempt))["authenticate"]["errors"]
    assert error["code"] == "AUTHENTICATION_FAILED"


async def test_a_temporary_password_only_sets_a_new_password(world: Environment, http: Any) -> None:
    ada = await make_client(world, http, "ada", password=OLD)
    chief = await make_domain_admin(world, http, "chief")
    entering = {"username": "ada", "password": OLD, "token": True}
    before = (await ada(ENTER, input=entering))["authenticate"]["token"]
    made = (await chief(RESET, input={"user": {"username": "ada"}}))["passwordReset"]
    assert made["errors"] == []
    assert await status(replace(ada, secret=before)) == "UNAUTHENTICATED"
    given = {**entering, "password": made["password"]}
    done = (await ada(ENTER, input=given))["authenticate"]
    assert done["requirePasswordChange"]
    narrow = replace(ada, secret=done["token"])
    assert await status(narrow, MAIL) == "FORBIDDEN"
    targets = {"set": {"targets": ["mallory@far.example"]}}
    both = {"password": NEW, "name": "Mallory"}
    for patch in (targets, {"set": both, "existingPassword": made["password"]}):
        (error,) = (await narrow(UPDATE, input=patch))["userUpdate"]["errors"]
        assert error["code"] == "FORBIDDEN"
    fresh = {"set": {"password": NEW}, "existingPassword": made["password"]}
    assert (await narrow(UPDATE, input=fresh))["userUpdate"]["errors"] == []
    while await tasks.run_next_task(world):
        pass
    assert (await status(narrow, MAIL))["messages"]["totalCount"] == 1  # it tells of the reset
    assert (await ada(ENTER, input={**given, "password": NEW}))["authenticate"]["errors"] == []


async def told(client: Client) -> list[tuple[str, str]]:
    """The events that others caused, with who did it; a message was written for each."""
    while await tasks.run_next_task(client.world):
        pass
    asked = select(col(SecurityEvent.action), col(SecurityEvent.by)).where(
        col(SecurityEvent.user_id) == client.user.id, col(SecurityEvent.by).is_not(None)
    )
    events = [(row.action, row.by) for row in await client.world.database.read(asked)]
    letters = select(col(Message.id)).where(
        col(Message.user_id) == client.user.id,
        col(Message.subject) == "Your account was changed by an administrator",
    )
    assert len(await client.world.database.read(letters)) == len(events)
    return sorted(events)


async def test_what_an_administrator_changes_is_logged_and_told_by_mail(
    over: Client, ada: Client
) -> None:
    user = {"user": {"username": "ada"}}
    users = {"users": {"usernames": ["ada"]}}
    why = {"options": {"reason": "lost phone"}}
    changes = [
        ("passwordReset", "PasswordResetInput", user),
        ("userUpdate", "UserUpdateInput", {**users, "set": {"targets": ["t@far.example"]}}),
        ("userUpdate", "UserUpdateInput", {**users, "set": {"fromWhitelist": ["t@far.example"]}}),
        ("apiKeyCreate", "ApiKeyCreateInput", {**user, "name": "x"}),
        ("appPasswordCreate", "AppPasswordCreateInput", {**user, "description": "x"}),
        ("customTwoFactorEnable", "CustomTwoFactorEnableInput", user),
        ("twoFactorDisable", "TwoFactorDisableInput", {**user, **why}),
        ("connectorCreate", "ConnectorCreateInput", {
            **user, "host": "imap.far.example", "username": "x",
            "password": "secret word", "active": False,
        }),
        ("bccRuleCreate", "BccRuleCreateInput", {
            "match": ada.address, "bccTo": "copy@far.example", "direction": "RECIPIENT",
        }),
    ]  # fmt: skip
    for name, kind, given in changes:
        errors = "errors { code path message }"
        document = f"mutation ($input: {kind}!) {{ {name}(input: $input) {{ {errors} }} }}"
        assert (await over(document, input=given))[name]["errors"] == [], name
    assert await told(ada) == [
        (action, "over")
        for action in (
            "2fa disable", "api key create", "app password create", "bcc rule create",
            "connector create", "custom enable", "forwarding change", "password reset",
            "sender whitelist change",
        )
    ]  # fmt: skip


async def test_a_whitelist_names_no_address_of_an_account_above(
    chief: Client, over: Client, ada: Client
) -> None:
    for pattern in (over.address, "*@example.org", "example.org"):
        given = {"users": {"usernames": ["ada"]}, "set": {"fromWhitelist": [pattern]}}
        (error,) = (await chief(UPDATE, input=given))["userUpdate"]["errors"]
        assert (error["code"], error["path"][:2]) == ("FORBIDDEN", ["set", "fromWhitelist"])
    given = {"users": {"usernames": ["ada"]}, "set": {"fromWhitelist": ["bob@example.org"]}}
    assert (await chief(UPDATE, input=given))["userUpdate"]["errors"] == []
    assert ada.user.id

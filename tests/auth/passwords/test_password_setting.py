"""Setting and resetting passwords, and the credentials that a change ends."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from models.auth.credentials import AccessToken
from models.users.roles import Role
from tests.conftest import GraphQLClient, ManualClock, make_client
from tests.support.accounts.user_operations import (
    NEW_PASSWORD,
    PASSWORD,
    execute_mutation,
    load_user_row,
    make_admin_of_domain,
    try_create_user,
    try_sign_in,
    try_update_users,
    user_global_id,
)
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def eve(root: GraphQLClient) -> GraphQLClient:
    """A user with a password."""
    return await make_client(root.environment, root.http, "eve", password=PASSWORD)


async def sign_in_client(client: GraphQLClient, password: str = PASSWORD) -> GraphQLClient:
    secret = await try_sign_in(client.environment, client.user.username, password)
    assert secret
    return GraphQLClient(client.http, client.environment, client.user, secret)


async def is_token_valid(client: GraphQLClient) -> bool:
    answer = await client.execute("{ viewer { role } }")
    return bool("errors" not in answer and answer["data"]["viewer"]["role"] == "USER")


async def test_password_change_ends_all_other_tokens(eve: GraphQLClient) -> None:
    current_client, other_client = await sign_in_client(eve), await sign_in_client(eve)
    (user,), errors = await try_update_users(
        current_client, password=NEW_PASSWORD, existingPassword=PASSWORD
    )
    assert (errors, user["hasPassword"]) == ([], True)
    assert [await is_token_valid(current_client), await is_token_valid(other_client)] == [
        True,
        False,
    ]
    assert await try_sign_in(eve.environment, "eve", PASSWORD) is None
    assert await try_sign_in(eve.environment, "eve", NEW_PASSWORD)
    row = await load_user_row(eve.environment, eve)
    assert row.password_changed_at == eve.environment.now()
    events = await select_rows(
        eve.environment, "SELECT action, result FROM security_events WHERE action LIKE 'PASS%'"
    )
    assert events == [("PASSWORD_CHANGED", "SUCCESS")]
    assert (
        await try_update_users(current_client, password=PASSWORD, existingPassword=NEW_PASSWORD)
    )[1] == []  # a second change
    assert await is_token_valid(current_client)


@pytest.mark.parametrize("changes", [{"password": NEW_PASSWORD}, {"passwordDisabled": True}])
async def test_own_password_change_needs_existing_password(
    eve: GraphQLClient, changes: dict[str, Any]
) -> None:
    client = await sign_in_client(eve)
    for existing_password, code in ((None, "VALIDATION"), ("wrong", "AUTHENTICATION_FAILED"),
                           ("", "AUTHENTICATION_FAILED")):  # fmt: skip
        extra = {} if existing_password is None else {"existingPassword": existing_password}
        users, (error,) = await try_update_users(client, **changes, **extra)
        assert (users, error["code"], error["path"]) == ([], code, ["existingPassword"])
        assert PASSWORD not in str(error)
    assert (await load_user_row(eve.environment, eve)).auth_version == 1
    (user,), errors = await try_update_users(client, **changes, existingPassword=PASSWORD)
    assert (errors, user["hasPassword"]) == ([], "password" in changes)


async def test_wrong_existing_passwords_are_rate_limited(eve: GraphQLClient) -> None:
    client = await sign_in_client(eve)
    for number in range(12):
        await try_update_users(client, password=NEW_PASSWORD, existingPassword=f"guess {number}")
    _, (error,) = await try_update_users(client, password=NEW_PASSWORD, existingPassword=PASSWORD)
    assert error["code"] == "RATE_LIMITED"
    assert (await load_user_row(eve.environment, eve)).auth_version == 1


async def test_one_of_two_concurrent_password_changes_succeeds(eve: GraphQLClient) -> None:
    client = await sign_in_client(eve)
    updates = (
        try_update_users(client, password=f"{NEW_PASSWORD} {n}", existingPassword=PASSWORD)
        for n in range(2)
    )
    answers = await asyncio.gather(*updates)
    assert sorted(len(errors) for _, errors in answers) == [0, 1]
    assert (await load_user_row(eve.environment, eve)).auth_version == 2


async def test_first_password_needs_no_existing_password(ada: GraphQLClient) -> None:
    assert (await try_update_users(ada, password=NEW_PASSWORD))[1] == []
    assert await try_sign_in(ada.environment, "ada", NEW_PASSWORD)


async def test_password_change_by_admin_is_logged(
    root: GraphQLClient, eve: GraphQLClient, bob: GraphQLClient
) -> None:
    client = await sign_in_client(eve)
    (user,), errors = await try_update_users(
        root, eve, password=NEW_PASSWORD, passwordChangeRequired=True, options={"reason": "lost"}
    )
    assert (errors, user["passwordChangeRequired"]) == ([], True)
    assert not await is_token_valid(client)
    (log_entry,) = await select_rows(
        root.environment,
        "SELECT mutation, reason, before, after FROM audit_log WHERE reason = 'lost'",
    )
    assert log_entry[:2] == ("userUpdate", "lost")
    assert NEW_PASSWORD not in str(log_entry)
    assert "argon2" not in str(log_entry)
    ((maker_id, user_id),) = await select_rows(
        root.environment,
        "SELECT \"by\", user_id FROM security_events WHERE action = 'PASSWORD_CHANGED'",
    )
    assert (bool(maker_id), user_id) == (True, eve.user.id)
    _, (error,) = await try_update_users(root, eve, bob, password=NEW_PASSWORD)
    assert (error["constraint"], error["path"]) == ("EXCLUSIVE", ["set", "password"])
    _, (error,) = await try_update_users(root, eve, bob, name="x", existingPassword=NEW_PASSWORD)
    assert (error["constraint"], error["path"]) == ("EXCLUSIVE", ["existingPassword"])
    _, (error,) = await try_update_users(root, eve, name="x", existingPassword="wrong")
    assert error["code"] == "AUTHENTICATION_FAILED"
    assert (await try_update_users(root, eve, name="x", existingPassword=NEW_PASSWORD))[1] == []


@pytest.mark.parametrize(("field", "ends_access"), [("active", False), ("suspended", True)])
async def test_inactive_or_suspended_user_is_signed_out(
    root: GraphQLClient, eve: GraphQLClient, field: str, ends_access: bool
) -> None:
    client = await sign_in_client(eve)
    assert (await try_update_users(root, eve, **{field: ends_access}))[1] == []
    assert not await is_token_valid(client)
    # the API key is refused too
    assert "errors" in await eve.execute("{ viewer { user { username } } }")
    assert await try_sign_in(root.environment, "eve", PASSWORD) is None
    (user,), _ = await try_update_users(root, eve, **{field: not ends_access})
    assert user[field] is not ends_access
    assert not await is_token_valid(client)  # an ended token stays ended
    assert await try_sign_in(root.environment, "eve", PASSWORD)
    version = (await load_user_row(root.environment, eve)).auth_version
    assert (await try_update_users(root, eve, **{field: not ends_access}))[1] == []
    assert (await load_user_row(root.environment, eve)).auth_version == version == 2


async def test_password_change_by_admin_ends_tokens_of_user(
    root: GraphQLClient, eve: GraphQLClient
) -> None:
    client = await sign_in_client(eve)
    assert (await try_update_users(root, eve, password=NEW_PASSWORD))[1] == []
    async with root.environment.write_session() as session:
        await session.exec(update(AccessToken).values(last_used_at=root.environment.now()))
    versions = await select_rows(root.environment, "SELECT auth_version FROM access_tokens")
    assert versions == [(1,)]
    assert not await is_token_valid(client)


async def test_temporary_password_keeps_regular_password(
    root: GraphQLClient, eve: GraphQLClient, clock: ManualClock
) -> None:
    fields, user = "password", {"id": user_global_id(eve)}
    row_before = await load_user_row(root.environment, eve)
    payload = await execute_mutation(
        root, "userPasswordReset", fields, user=user, options={"idempotencyKey": "k"}
    )
    password = payload["password"]
    assert (payload["errors"], len(password), password.isalnum()) == ([], 12, True)
    row = await load_user_row(root.environment, eve)
    assert (row.password, row.auth_version) == (row_before.password, row_before.auth_version + 1)
    assert row.temporary_password.startswith("$argon2id$")
    assert (row.temporary_from, row.temporary_until) == (clock(), clock() + timedelta(days=1))
    assert row.password_change_required
    for table in ("audit_log", "security_events", "changes", "idempotent_payloads"):
        assert password not in str(await select_rows(root.environment, f"SELECT * FROM {table}"))  # noqa: S608
    (event,) = await select_rows(
        root.environment, "SELECT user_id FROM security_events WHERE action = 'PASSWORD_RESET'"
    )
    assert event == (eve.user.id,)
    # A temporary password can set a new password, and is deleted then.
    (updated_user,), errors = await try_update_users(
        eve, password=NEW_PASSWORD, existingPassword=password
    )
    assert (errors, updated_user["passwordChangeRequired"]) == ([], False)
    row = await load_user_row(root.environment, eve)
    assert (row.temporary_password, row.temporary_from, row.temporary_until) == (None, None, None)


async def test_temporary_password_is_valid_for_one_day(
    root: GraphQLClient, eve: GraphQLClient, clock: ManualClock
) -> None:
    user = {"username": "eve"}
    too_late = (clock() + timedelta(days=400)).isoformat()
    payload = await execute_mutation(
        root, "userPasswordReset", "password", user=user, startsAt=too_late
    )
    assert (payload["password"], payload["errors"][0]["path"]) == (None, ["startsAt"])
    valid_from = clock() + timedelta(hours=5)
    payload = await execute_mutation(
        root, "userPasswordReset", "password", user=user, startsAt=valid_from.isoformat()
    )
    password = payload["password"]
    row = await load_user_row(root.environment, eve)
    assert (row.temporary_from, row.temporary_until) == (valid_from, valid_from + timedelta(days=1))
    for hours, is_valid in ((0, False), (5, True), (25, False)):
        clock.tick(hours=hours)
        _, errors = await try_update_users(
            eve, password=NEW_PASSWORD, existingPassword=password, options={"validateOnly": True}
        )
        assert (errors == []) is is_valid, hours
    past_time = (clock() - timedelta(days=1)).isoformat()
    assert (
        await execute_mutation(root, "userPasswordReset", "password", user=user, startsAt=past_time)
    )["password"]
    assert (await load_user_row(root.environment, eve)).temporary_from == clock()


async def test_password_reset_needs_rights_over_the_user(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    domain_admin = await make_admin_of_domain(root)
    admin = await make_client(root.environment, root.http, "admin2", role=Role.ADMIN)
    other_user, _ = await try_create_user(root, address="x@elsewhere.example")
    for client, target, code in (
        (ada, user_global_id(domain_admin), "FORBIDDEN"),
        (domain_admin, other_user["id"], "NOT_FOUND"),
        (domain_admin, user_global_id(12345), "NOT_FOUND"),
        (domain_admin, user_global_id(admin), "FORBIDDEN"),
        (admin, user_global_id(admin), "FORBIDDEN_OPERATION"),
    ):
        payload = await execute_mutation(
            client, "userPasswordReset", "password", user={"id": target}
        )
        assert (payload["password"], payload["errors"][0]["code"]) == (None, code)
    assert (
        await select_rows(
            root.environment, "SELECT id FROM users WHERE temporary_password IS NOT NULL"
        )
        == []
    )
    assert (
        await execute_mutation(
            domain_admin, "userPasswordReset", "password", user={"id": user_global_id(ada)}
        )
    )["password"]

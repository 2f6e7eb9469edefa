"""Setting and resetting passwords, and the credentials that a change ends."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from models.auth.credentials import AccessToken
from models.users.roles import Role
from tests.conftest import Client, Clock, make_client
from tests.support.accounts.user_operations import (
    NEW,
    PASSWORD,
    change,
    chief,
    create,
    id_of,
    row_of,
    run,
    signs_in,
)
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
async def eve(root: Client) -> Client:
    """A user with a password."""
    return await make_client(root.world, root.http, "eve", password=PASSWORD)


async def sign_in_client(client: Client, password: str = PASSWORD) -> Client:
    secret = await signs_in(client.world, client.user.username, password)
    assert secret
    return Client(client.http, client.world, client.user, secret)


async def is_token_valid(client: Client) -> bool:
    answer = await client.raw("{ viewer { role } }")
    return bool("errors" not in answer and answer["data"]["viewer"]["role"] == "USER")


async def test_password_change_ends_all_other_tokens(eve: Client) -> None:
    current_client, other_client = await sign_in_client(eve), await sign_in_client(eve)
    (user,), errors = await change(current_client, password=NEW, existingPassword=PASSWORD)
    assert (errors, user["hasPasswordSet"]) == ([], True)
    assert [await is_token_valid(current_client), await is_token_valid(other_client)] == [
        True,
        False,
    ]
    assert await signs_in(eve.world, "eve", PASSWORD) is None
    assert await signs_in(eve.world, "eve", NEW)
    row = await row_of(eve.world, eve)
    assert row.password_changed_at == eve.world.now()
    events = await rows(
        eve.world, "SELECT action, result FROM auth_events WHERE action LIKE 'pass%'"
    )
    assert events == [("password change", "success")]
    assert (await change(current_client, password=PASSWORD, existingPassword=NEW))[
        1
    ] == []  # a second change
    assert await is_token_valid(current_client)


@pytest.mark.parametrize("changes", [{"password": NEW}, {"passwordDisabled": True}])
async def test_own_password_change_needs_existing_password(
    eve: Client, changes: dict[str, Any]
) -> None:
    client = await sign_in_client(eve)
    for existing_password, code in ((None, "VALIDATION"), ("wrong", "AUTHENTICATION_FAILED"),
                           ("", "AUTHENTICATION_FAILED")):  # fmt: skip
        extra = {} if existing_password is None else {"existingPassword": existing_password}
        users, (error,) = await change(client, **changes, **extra)
        assert (users, error["code"], error["path"]) == ([], code, ["existingPassword"])
        assert PASSWORD not in str(error)
    assert (await row_of(eve.world, eve)).auth_version == 1
    (user,), errors = await change(client, **changes, existingPassword=PASSWORD)
    assert (errors, user["hasPasswordSet"]) == ([], "password" in changes)


async def test_wrong_existing_passwords_are_rate_limited(eve: Client) -> None:
    client = await sign_in_client(eve)
    for number in range(12):
        await change(client, password=NEW, existingPassword=f"guess {number}")
    _, (error,) = await change(client, password=NEW, existingPassword=PASSWORD)
    assert error["code"] == "RATE_LIMITED"
    assert (await row_of(eve.world, eve)).auth_version == 1


async def test_one_of_two_concurrent_password_changes_succeeds(eve: Client) -> None:
    client = await sign_in_client(eve)
    updates = (change(client, password=f"{NEW} {n}", existingPassword=PASSWORD) for n in range(2))
    answers = await asyncio.gather(*updates)
    assert sorted(len(errors) for _, errors in answers) == [0, 1]
    assert (await row_of(eve.world, eve)).auth_version == 2


async def test_first_password_needs_no_existing_password(ada: Client) -> None:
    assert (await change(ada, password=NEW))[1] == []
    assert await signs_in(ada.world, "ada", NEW)


async def test_password_change_by_admin_is_logged(root: Client, eve: Client, bob: Client) -> None:
    client = await sign_in_client(eve)
    (user,), errors = await change(
        root, eve, password=NEW, requirePasswordChange=True, options={"reason": "lost"}
    )
    assert (errors, user["requirePasswordChange"]) == ([], True)
    assert not await is_token_valid(client)
    (log_entry,) = await rows(
        root.world, "SELECT mutation, reason, before, after FROM admin_log WHERE reason = 'lost'"
    )
    assert log_entry[:2] == ("userUpdate", "lost")
    assert NEW not in str(log_entry)
    assert "argon2" not in str(log_entry)
    ((maker_id, user_id),) = await rows(
        root.world, "SELECT \"by\", user_id FROM auth_events WHERE action = 'password change'"
    )
    assert (bool(maker_id), user_id) == (True, eve.user.id)
    _, (error,) = await change(root, eve, bob, password=NEW)
    assert (error["constraint"], error["path"]) == ("exclusive", ["set", "password"])
    _, (error,) = await change(root, eve, bob, name="x", existingPassword=NEW)
    assert (error["constraint"], error["path"]) == ("exclusive", ["existingPassword"])
    _, (error,) = await change(root, eve, name="x", existingPassword="wrong")
    assert error["code"] == "AUTHENTICATION_FAILED"
    assert (await change(root, eve, name="x", existingPassword=NEW))[1] == []


@pytest.mark.parametrize("field", ["disabled", "suspended"])
async def test_disabled_or_suspended_user_is_signed_out(
    root: Client, eve: Client, field: str
) -> None:
    client = await sign_in_client(eve)
    assert (await change(root, eve, **{field: True}))[1] == []
    assert not await is_token_valid(client)
    # the API key is refused too
    assert "errors" in await eve.raw("{ viewer { user { username } } }")
    assert await signs_in(root.world, "eve", PASSWORD) is None
    (user,), _ = await change(root, eve, **{field: False})
    assert user[field] is False
    assert not await is_token_valid(client)  # an ended token stays ended
    assert await signs_in(root.world, "eve", PASSWORD)
    version = (await row_of(root.world, eve)).auth_version
    assert (await change(root, eve, **{field: False}))[1] == []
    assert (await row_of(root.world, eve)).auth_version == version == 2


async def test_password_change_by_admin_ends_tokens_of_user(root: Client, eve: Client) -> None:
    client = await sign_in_client(eve)
    assert (await change(root, eve, password=NEW))[1] == []
    async with root.world.write_session() as session:
        await session.exec(update(AccessToken).values(last_used_at=root.world.now()))
    versions = await rows(root.world, "SELECT auth_version FROM access_tokens")
    assert versions == [(1,)]
    assert not await is_token_valid(client)


async def test_temporary_password_keeps_regular_password(
    root: Client, eve: Client, clock: Clock
) -> None:
    fields, user = "password", {"id": id_of(eve)}
    row_before = await row_of(root.world, eve)
    payload = await run(root, "passwordReset", fields, user=user, options={"idempotencyKey": "k"})
    password = payload["password"]
    assert (payload["errors"], len(password), password.isalnum()) == ([], 12, True)
    row = await row_of(root.world, eve)
    assert (row.password, row.auth_version) == (row_before.password, row_before.auth_version + 1)
    assert row.temporary_password.startswith("$argon2id$")
    assert (row.temporary_from, row.temporary_until) == (clock(), clock() + timedelta(days=1))
    assert row.require_password_change
    for table in ("admin_log", "auth_events", "changes", "replays"):
        assert password not in str(await rows(root.world, f"SELECT * FROM {table}"))  # noqa: S608
    (event,) = await rows(
        root.world, "SELECT user_id FROM auth_events WHERE action = 'password reset'"
    )
    assert event == (eve.user.id,)
    # A temporary password can set a new password, and is deleted then.
    (updated_user,), errors = await change(eve, password=NEW, existingPassword=password)
    assert (errors, updated_user["requirePasswordChange"]) == ([], False)
    row = await row_of(root.world, eve)
    assert (row.temporary_password, row.temporary_from, row.temporary_until) == (None, None, None)


async def test_temporary_password_is_valid_for_one_day(
    root: Client, eve: Client, clock: Clock
) -> None:
    user = {"username": "eve"}
    too_late = (clock() + timedelta(days=400)).isoformat()
    payload = await run(root, "passwordReset", "password", user=user, validAfter=too_late)
    assert (payload["password"], payload["errors"][0]["path"]) == (None, ["validAfter"])
    valid_from = clock() + timedelta(hours=5)
    payload = await run(
        root, "passwordReset", "password", user=user, validAfter=valid_from.isoformat()
    )
    password = payload["password"]
    row = await row_of(root.world, eve)
    assert (row.temporary_from, row.temporary_until) == (valid_from, valid_from + timedelta(days=1))
    for hours, is_valid in ((0, False), (5, True), (25, False)):
        clock.tick(hours=hours)
        _, errors = await change(
            eve, password=NEW, existingPassword=password, options={"validateOnly": True}
        )
        assert (errors == []) is is_valid, hours
    past_time = (clock() - timedelta(days=1)).isoformat()
    assert (await run(root, "passwordReset", "password", user=user, validAfter=past_time))[
        "password"
    ]
    assert (await row_of(root.world, eve)).temporary_from == clock()


async def test_password_reset_needs_rights_over_the_user(root: Client, ada: Client) -> None:
    domain_admin = await chief(root)
    admin = await make_client(root.world, root.http, "admin2", role=Role.ADMIN)
    other_user, _ = await create(root, address="x@elsewhere.example")
    for client, target, code in (
        (ada, id_of(domain_admin), "FORBIDDEN"),
        (domain_admin, other_user["id"], "NOT_FOUND"),
        (domain_admin, id_of(12345), "NOT_FOUND"),
        (domain_admin, id_of(admin), "FORBIDDEN"),
        (admin, id_of(admin), "FORBIDDEN_OPERATION"),
    ):
        payload = await run(client, "passwordReset", "password", user={"id": target})
        assert (payload["password"], payload["errors"][0]["code"]) == (None, code)
    assert await rows(root.world, "SELECT id FROM users WHERE temporary_password IS NOT NULL") == []
    assert (await run(domain_admin, "passwordReset", "password", user={"id": id_of(ada)}))[
        "password"
    ]

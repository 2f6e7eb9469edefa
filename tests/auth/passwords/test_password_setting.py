"""Passwords of accounts: set, lent for a time, and what ends with them."""

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
    """Somebody with a password."""
    return await make_client(root.world, root.http, "eve", password=PASSWORD)


async def token_client(client: Client, password: str = PASSWORD) -> Client:
    secret = await signs_in(client.world, client.user.username, password)
    assert secret
    return Client(client.http, client.world, client.user, secret)


async def alive(client: Client) -> bool:
    answer = await client.raw("{ viewer { role } }")
    return bool("errors" not in answer and answer["data"]["viewer"]["role"] == "USER")


async def test_a_new_password_ends_all_tokens_but_the_one_that_set_it(eve: Client) -> None:
    this, other = await token_client(eve), await token_client(eve)
    (user,), errors = await change(this, password=NEW, existingPassword=PASSWORD)
    assert (errors, user["hasPasswordSet"]) == ([], True)
    assert [await alive(this), await alive(other)] == [True, False]
    assert await signs_in(eve.world, "eve", PASSWORD) is None
    assert await signs_in(eve.world, "eve", NEW)
    row = await row_of(eve.world, eve)
    assert row.password_changed_at == eve.world.now()
    events = await rows(
        eve.world, "SELECT action, result FROM auth_events WHERE action LIKE 'pass%'"
    )
    assert events == [("password change", "success")]
    assert (await change(this, password=PASSWORD, existingPassword=NEW))[1] == []  # and once more
    assert await alive(this)


@pytest.mark.parametrize("given", [{"password": NEW}, {"passwordDisabled": True}])
async def test_ones_own_password_is_changed_by_who_knows_it(
    eve: Client, given: dict[str, Any]
) -> None:
    this = await token_client(eve)
    for existing, code in ((None, "VALIDATION"), ("wrong", "AUTHENTICATION_FAILED"),
                           ("", "AUTHENTICATION_FAILED")):  # fmt: skip
        more = {} if existing is None else {"existingPassword": existing}
        users, (error,) = await change(this, **given, **more)
        assert (users, error["code"], error["path"]) == ([], code, ["existingPassword"])
        assert PASSWORD not in str(error)
    assert (await row_of(eve.world, eve)).auth_version == 1
    (user,), errors = await change(this, **given, existingPassword=PASSWORD)
    assert (errors, user["hasPasswordSet"]) == ([], "password" in given)


async def test_guessing_the_existing_password_has_an_end(eve: Client) -> None:
    this = await token_client(eve)
    for nth in range(12):
        await change(this, password=NEW, existingPassword=f"guess {nth}")
    _, (error,) = await change(this, password=NEW, existingPassword=PASSWORD)
    assert error["code"] == "RATE_LIMITED"
    assert (await row_of(eve.world, eve)).auth_version == 1


async def test_of_two_new_passwords_at_once_one_is_set(eve: Client) -> None:
    this = await token_client(eve)
    both = (change(this, password=f"{NEW} {n}", existingPassword=PASSWORD) for n in range(2))
    answers = await asyncio.gather(*both)
    assert sorted(len(errors) for _, errors in answers) == [0, 1]
    assert (await row_of(eve.world, eve)).auth_version == 2


async def test_who_has_no_password_needs_none_to_set_one(ada: Client) -> None:
    assert (await change(ada, password=NEW))[1] == []
    assert await signs_in(ada.world, "ada", NEW)


async def test_a_password_is_set_by_an_administrator_and_logged(
    root: Client, eve: Client, bob: Client
) -> None:
    this = await token_client(eve)
    (user,), errors = await change(
        root, eve, password=NEW, requirePasswordChange=True, options={"reason": "lost"}
    )
    assert (errors, user["requirePasswordChange"]) == ([], True)
    assert not await alive(this)
    (found,) = await rows(
        root.world, "SELECT mutation, reason, before, after FROM admin_log WHERE reason = 'lost'"
    )
    assert found[:2] == ("userUpdate", "lost")
    assert NEW not in str(found)
    assert "argon2" not in str(found)
    ((by, user_id),) = await rows(
        root.world, "SELECT \"by\", user_id FROM auth_events WHERE action = 'password change'"
    )
    assert (bool(by), user_id) == (True, eve.user.id)
    _, (error,) = await change(root, eve, bob, password=NEW)
    assert (error["constraint"], error["path"]) == ("exclusive", ["set", "password"])
    _, (error,) = await change(root, eve, bob, name="x", existingPassword=NEW)
    assert (error["constraint"], error["path"]) == ("exclusive", ["existingPassword"])
    _, (error,) = await change(root, eve, name="x", existingPassword="wrong")
    assert error["code"] == "AUTHENTICATION_FAILED"
    assert (await change(root, eve, name="x", existingPassword=NEW))[1] == []


@pytest.mark.parametrize("how", ["disabled", "suspended"])
async def test_who_is_switched_off_is_out_at_once(root: Client, eve: Client, how: str) -> None:
    this = await token_client(eve)
    assert (await change(root, eve, **{how: True}))[1] == []
    assert not await alive(this)
    assert "errors" in await eve.raw("{ viewer { user { username } } }")  # the key too
    assert await signs_in(root.world, "eve", PASSWORD) is None
    (user,), _ = await change(root, eve, **{how: False})
    assert user[how] is False
    assert not await alive(this)  # what has ended stays so
    assert await signs_in(root.world, "eve", PASSWORD)
    version = (await row_of(root.world, eve)).auth_version
    assert (await change(root, eve, **{how: False}))[1] == []
    assert (await row_of(root.world, eve)).auth_version == version == 2


async def test_a_token_of_somebody_else_s_change_is_not_kept(root: Client, eve: Client) -> None:
    this = await token_client(eve)
    assert (await change(root, eve, password=NEW))[1] == []
    async with root.world.write_session() as session:
        await session.exec(update(AccessToken).values(last_used_at=root.world.now()))
    found = await rows(root.world, "SELECT auth_version FROM access_tokens")
    assert found == [(1,)]
    assert not await alive(this)


async def test_a_temporary_password_lies_beside_the_real_one(
    root: Client, eve: Client, clock: Clock
) -> None:
    fields, user = "password", {"id": id_of(eve)}
    before = await row_of(root.world, eve)
    answer = await run(root, "passwordReset", fields, user=user, options={"idempotencyKey": "k"})
    password = answer["password"]
    assert (answer["errors"], len(password), password.isalnum()) == ([], 12, True)
    row = await row_of(root.world, eve)
    assert (row.password, row.auth_version) == (before.password, before.auth_version + 1)
    assert row.temporary_password.startswith("$argon2id$")
    assert (row.temporary_from, row.temporary_until) == (clock(), clock() + timedelta(days=1))
    assert row.require_password_change
    for table in ("admin_log", "auth_events", "changes", "replays"):
        assert password not in str(await rows(root.world, f"SELECT * FROM {table}"))  # noqa: S608
    (event,) = await rows(
        root.world, "SELECT user_id FROM auth_events WHERE action = 'password reset'"
    )
    assert event == (eve.user.id,)
    # who has it may set another, and then it is gone
    (seen,), errors = await change(eve, password=NEW, existingPassword=password)
    assert (errors, seen["requirePasswordChange"]) == ([], False)
    row = await row_of(root.world, eve)
    assert (row.temporary_password, row.temporary_from, row.temporary_until) == (None, None, None)


async def test_a_temporary_password_has_its_time(root: Client, eve: Client, clock: Clock) -> None:
    user = {"username": "eve"}
    late = (clock() + timedelta(days=400)).isoformat()
    answer = await run(root, "passwordReset", "password", user=user, validAfter=late)
    assert (answer["password"], answer["errors"][0]["path"]) == (None, ["validAfter"])
    begin = clock() + timedelta(hours=5)
    answer = await run(root, "passwordReset", "password", user=user, validAfter=begin.isoformat())
    password = answer["password"]
    row = await row_of(root.world, eve)
    assert (row.temporary_from, row.temporary_until) == (begin, begin + timedelta(days=1))
    for hours, good in ((0, False), (5, True), (25, False)):
        clock.tick(hours=hours)
        _, errors = await change(
            eve, password=NEW, existingPassword=password, options={"validateOnly": True}
        )
        assert (errors == []) is good, hours
    past = (clock() - timedelta(days=1)).isoformat()
    assert (await run(root, "passwordReset", "password", user=user, validAfter=past))["password"]
    assert (await row_of(root.world, eve)).temporary_from == clock()


async def test_whose_password_is_reset_by_whom(root: Client, ada: Client) -> None:
    boss = await chief(root)
    admin = await make_client(root.world, root.http, "admin2", role=Role.ADMIN)
    far, _ = await create(root, address="x@elsewhere.example")
    for client, target, code in (
        (ada, id_of(boss), "FORBIDDEN"),
        (boss, far["id"], "NOT_FOUND"),
        (boss, id_of(12345), "NOT_FOUND"),
        (boss, id_of(admin), "FORBIDDEN"),
        (admin, id_of(admin), "FORBIDDEN_OPERATION"),
    ):
        answer = await run(client, "passwordReset", "password", user={"id": target})
        assert (answer["password"], answer["errors"][0]["code"]) == (None, code)
    assert await rows(root.world, "SELECT id FROM users WHERE temporary_password IS NOT NULL") == []
    assert (await run(boss, "passwordReset", "password", user={"id": id_of(ada)}))["password"]

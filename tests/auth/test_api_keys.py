"""API keys."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models.auth.credentials import ApiKey
from models.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
)
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from resolvers.auth import api_keys, authentication
from resolvers.auth.api_keys import NewApiKey
from resolvers.context import Context, Viewer
from tests.support.accounts.sign_in_environment import MASTER_SCOPES, SignInEnvironment
from tests.support.stores.row_counts import row_count


async def test_a_key_is_what_it_was_made_for(sign_in_environment: SignInEnvironment) -> None:
    until = sign_in_environment.clock() + timedelta(days=1)
    new = NewApiKey("backup", scopes={Scope.MAIL_READ}, read_only=True, expires_at=until)
    row, secret = await api_keys.create_api_key(sign_in_environment.user_context("ada"), new)
    viewer = await authentication.authenticate_request(
        sign_in_environment.world, {"x-api-key": secret}, ip=None
    )
    assert viewer == await sign_in_environment.authenticate(secret)
    assert viewer == Viewer(
        sign_in_environment.users["ada"],
        Role.USER,
        frozenset({Scope.MAIL_READ}),
        read_only=True,
        api_key_id=row.id,
        expires_at=until,
    )
    with pytest.raises(Unauthenticated):
        await authentication.authenticate_request(
            sign_in_environment.world, {"x-access-token": secret}, ip=None
        )
    sign_in_environment.clock.tick(days=1)
    assert await sign_in_environment.is_refused(secret)
    assert await authentication.has_credential_ended(sign_in_environment.world, viewer)


async def test_a_key_without_scopes_may_do_all_of_its_role(
    sign_in_environment: SignInEnvironment,
) -> None:
    boss = sign_in_environment.user_context("ada", Role.ROOT)
    _, secret = await api_keys.create_api_key(boss, NewApiKey("boss", role=Role.ADMIN))
    viewer = await sign_in_environment.authenticate(secret)
    assert (viewer.user_id, viewer.role, viewer.scopes) == (0, Role.ADMIN, MASTER_SCOPES)


async def test_nobody_makes_a_key_above_themselves(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.add_user("rex", role=Role.ROOT)
    mighty = NewApiKey("k", role=Role.ADMIN)
    rexs = NewApiKey("k", user_id=sign_in_environment.users["rex"])
    for ctx, new in (
        (sign_in_environment.user_context("ada"), mighty),
        (sign_in_environment.user_context("ada", scopes=frozenset({Scope.MAIL})), NewApiKey("k")),
        (
            sign_in_environment.user_context("ada", Role.ADMIN),
            replace(mighty, user_id=sign_in_environment.users["ada"]),
        ),
        (sign_in_environment.user_context("ada", Role.ADMIN), rexs),
    ):
        with pytest.raises(Forbidden):
            await api_keys.create_api_key(ctx, new)
    with pytest.raises(NotFound):
        await api_keys.create_api_key(sign_in_environment.user_context("ada"), rexs)
    assert await row_count(sign_in_environment.world, ApiKey) == 0


@pytest.mark.parametrize(
    ("new", "path"),
    [
        (NewApiKey(" "), "name"),
        (NewApiKey("x" * 129), "name"),
        (NewApiKey("k", role=Role.PUBLIC), "role"),
        (NewApiKey("k", expires_at=datetime(2029, 12, 31, tzinfo=UTC)), "expiresAt"),
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(
    sign_in_environment: SignInEnvironment, new: NewApiKey, path: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await api_keys.create_api_key(sign_in_environment.user_context("ada"), new)
    assert refusal.value.path == [path]


async def test_a_key_may_not_do_more_than_its_user_today(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", role=Role.ADMIN)
    new = NewApiKey("k", role=Role.ADMIN, user_id=sign_in_environment.users["ada"])
    _, secret = await api_keys.create_api_key(
        sign_in_environment.user_context("ada", Role.ADMIN), new
    )
    assert (await sign_in_environment.authenticate(secret)).role is Role.ADMIN
    await sign_in_environment.change_user(
        "ada", role=Role.USER, auth_version=9
    )  # a key outlives a new password
    sign_in_environment.clock.tick(seconds=5)
    assert (await sign_in_environment.authenticate(secret)).role is Role.USER
    await sign_in_environment.change_user("ada", suspended=True)
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(secret)


async def test_keys_are_listed_newest_first_to_their_owner_and_to_admins(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.add_user("bob")
    for name in ("one", "two", "three"):
        await api_keys.create_api_key(sign_in_environment.user_context("ada"), NewApiKey(name))
    await api_keys.create_api_key(sign_in_environment.user_context("bob"), NewApiKey("bobs"))

    async def listed(ctx: Context, *asked: Any) -> list[str]:
        page = await api_keys.load_api_keys(
            ctx, PageRequest.from_arguments(api_keys.CURSOR_KIND, *asked)
        )
        return [row.name for row in page.rows]

    first = (None,) * 4
    assert await listed(sign_in_environment.user_context("ada"), *first) == ["three", "two", "one"]
    assert await listed(sign_in_environment.user_context("ada"), None, None, 2, None) == [
        "two",
        "one",
    ]
    assert await listed(sign_in_environment.user_context("bob", Role.ADMIN), *first) == [
        "bobs",
        "three",
        "two",
        "one",
    ]
    assert await listed(Context(sign_in_environment.world, Viewer()), *first) == []
    assert await api_keys.count_api_keys(sign_in_environment.user_context("ada")) == 3
    page = await api_keys.load_api_keys(
        sign_in_environment.user_context("ada"),
        PageRequest.from_arguments(api_keys.CURSOR_KIND, *first),
        {"name"},
    )
    assert not hasattr(page.rows[0], "digest")


async def test_a_deleted_key_is_refused_at_once(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.add_user("bob")
    row, secret = await api_keys.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("k")
    )
    assert not await sign_in_environment.is_refused(secret)
    with pytest.raises(NotFound):
        await api_keys.delete_api_keys(sign_in_environment.user_context("bob"), [row.id])
    root, _ = await api_keys.create_api_key(
        sign_in_environment.user_context("ada", Role.ROOT), NewApiKey("r", role=Role.ROOT)
    )
    with pytest.raises(Forbidden):
        await api_keys.delete_api_keys(
            sign_in_environment.user_context("bob", Role.ADMIN), [row.id, root.id]
        )
    assert not await sign_in_environment.is_refused(secret)
    await api_keys.delete_api_keys(sign_in_environment.user_context("ada"), [row.id])
    assert await sign_in_environment.is_refused(secret)


async def test_the_use_of_a_key_is_noted(sign_in_environment: SignInEnvironment) -> None:
    row, secret = await api_keys.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("k")
    )
    await sign_in_environment.authenticate(secret)
    await authentication.wait_for_background_tasks(sign_in_environment.world)
    (now,) = await api_keys.load_api_keys_by_id(sign_in_environment.user_context("ada"), [row.id])
    assert now
    assert now.last_used_at == sign_in_environment.clock()

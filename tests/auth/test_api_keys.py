"""API keys: creation, limits, lists, deletion and use."""

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
from resolvers.auth import authentication
from resolvers.auth.api_keys import loaders as api_key_loaders
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.loaders import ApiKeyConditions
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.support.accounts.sign_in_environment import FULL_SCOPES, SignInEnvironment
from tests.support.stores.row_counts import count_rows


async def test_key_has_its_scopes_and_expiry(sign_in_environment: SignInEnvironment) -> None:
    expires_at = sign_in_environment.clock() + timedelta(days=1)
    new_key = NewApiKey("backup", scopes={Scope.MAIL_READ}, read_only=True, expires_at=expires_at)
    row, secret = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada"), new_key
    )
    viewer = await authentication.authenticate_request(
        sign_in_environment.environment, {"x-api-key": secret}, ip=None
    )
    assert viewer == await sign_in_environment.authenticate(secret)
    assert viewer == Viewer(
        sign_in_environment.users["ada"],
        Role.USER,
        frozenset({Scope.MAIL_READ}),
        read_only=True,
        api_key_id=row.id,
        expires_at=expires_at,
    )
    with pytest.raises(Unauthenticated):
        await authentication.authenticate_request(
            sign_in_environment.environment, {"x-access-token": secret}, ip=None
        )
    sign_in_environment.clock.tick(days=1)
    assert await sign_in_environment.is_refused(secret)
    assert await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )


async def test_key_without_scopes_has_all_scopes_of_its_role(
    sign_in_environment: SignInEnvironment,
) -> None:
    root_context = sign_in_environment.user_context("ada", Role.ROOT)
    _, secret = await api_key_mutations.create_api_key(
        root_context, NewApiKey("boss", role=Role.ADMIN)
    )
    viewer = await sign_in_environment.authenticate(secret)
    assert (viewer.user_id, viewer.role, viewer.scopes) == (0, Role.ADMIN, FULL_SCOPES)


async def test_user_creates_no_key_with_more_rights(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.add_user("rex", role=Role.ROOT)
    admin_key = NewApiKey("k", role=Role.ADMIN)
    rex_key = NewApiKey("k", user_id=sign_in_environment.users["rex"])
    for ctx, new_key in (
        (sign_in_environment.user_context("ada"), admin_key),
        (sign_in_environment.user_context("ada", scopes=frozenset({Scope.MAIL})), NewApiKey("k")),
        (
            sign_in_environment.user_context("ada", Role.ADMIN),
            replace(admin_key, user_id=sign_in_environment.users["ada"]),
        ),
        (sign_in_environment.user_context("ada", Role.ADMIN), rex_key),
    ):
        with pytest.raises(Forbidden):
            await api_key_mutations.create_api_key(ctx, new_key)
    with pytest.raises(NotFound):
        await api_key_mutations.create_api_key(sign_in_environment.user_context("ada"), rex_key)
    assert await count_rows(sign_in_environment.environment, ApiKey) == 0


@pytest.mark.parametrize(
    ("new_key", "path"),
    [
        (NewApiKey(" "), "name"),
        (NewApiKey("x" * 129), "name"),
        (NewApiKey("k", role=Role.PUBLIC), "role"),
        (NewApiKey("k", expires_at=datetime(2029, 12, 31, tzinfo=UTC)), "expiresAt"),
    ],
)
async def test_invalid_api_key_is_refused(
    sign_in_environment: SignInEnvironment, new_key: NewApiKey, path: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await api_key_mutations.create_api_key(sign_in_environment.user_context("ada"), new_key)
    assert refusal.value.path == [path]


async def test_key_never_exceeds_current_role_of_its_user(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", role=Role.ADMIN)
    new_key = NewApiKey("k", role=Role.ADMIN, user_id=sign_in_environment.users["ada"])
    _, secret = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada", Role.ADMIN), new_key
    )
    assert (await sign_in_environment.authenticate(secret)).role is Role.ADMIN
    # a password change does not end a key
    await sign_in_environment.change_user("ada", role=Role.USER, auth_version=9)
    sign_in_environment.clock.tick(seconds=5)
    assert (await sign_in_environment.authenticate(secret)).role is Role.USER
    await sign_in_environment.change_user("ada", suspended=True)
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(secret)


async def test_keys_are_listed_newest_first_for_owner_and_admins(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.add_user("bob")
    for name in ("one", "two", "three"):
        await api_key_mutations.create_api_key(
            sign_in_environment.user_context("ada"), NewApiKey(name)
        )
    await api_key_mutations.create_api_key(
        sign_in_environment.user_context("bob"), NewApiKey("bobs")
    )

    async def list_key_names(ctx: Context, *page_arguments: Any) -> list[str]:
        page = await api_key_loaders.load_visible_api_key_page(
            ctx, ApiKeyConditions(), PageRequest.from_arguments("x", *page_arguments)
        )
        return [row.name for row in page.rows]

    first_page = (None,) * 4
    assert await list_key_names(sign_in_environment.user_context("ada"), *first_page) == [
        "three",
        "two",
        "one",
    ]
    assert await list_key_names(sign_in_environment.user_context("ada"), None, None, 2, None) == [
        "two",
        "one",
    ]
    assert await list_key_names(
        sign_in_environment.user_context("bob", Role.ADMIN), *first_page
    ) == [
        "bobs",
        "three",
        "two",
        "one",
    ]
    assert (
        await list_key_names(Context(sign_in_environment.environment, Viewer()), *first_page) == []
    )
    ada_context = sign_in_environment.user_context("ada")
    assert await api_key_loaders.count_visible_api_keys(ada_context, ApiKeyConditions()) == 3
    page = await api_key_loaders.load_visible_api_key_page(
        sign_in_environment.user_context("ada"),
        ApiKeyConditions(),
        PageRequest.from_arguments("x", *first_page),
        {"name"},
    )
    assert not hasattr(page.rows[0], "digest")


async def test_deleted_key_is_refused_at_once(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.add_user("bob")
    row, secret = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("k")
    )
    assert not await sign_in_environment.is_refused(secret)
    with pytest.raises(NotFound):
        await api_key_mutations.delete_api_keys(sign_in_environment.user_context("bob"), [row.id])
    root_key, _ = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada", Role.ROOT), NewApiKey("r", role=Role.ROOT)
    )
    with pytest.raises(Forbidden):
        await api_key_mutations.delete_api_keys(
            sign_in_environment.user_context("bob", Role.ADMIN), [row.id, root_key.id]
        )
    assert not await sign_in_environment.is_refused(secret)
    await api_key_mutations.delete_api_keys(sign_in_environment.user_context("ada"), [row.id])
    assert await sign_in_environment.is_refused(secret)


async def test_key_use_sets_last_used_at(sign_in_environment: SignInEnvironment) -> None:
    row, secret = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("k")
    )
    await sign_in_environment.authenticate(secret)
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    (used_row,) = await api_key_loaders.load_visible_api_keys_by_id(
        sign_in_environment.user_context("ada"), [row.id]
    )
    assert used_row
    assert used_row.last_used_at == sign_in_environment.clock()

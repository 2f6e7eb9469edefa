"""Signed URLs end with the credential that made them."""

from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from models.auth.application_passwords import ApplicationPassword
from models.auth.credentials import ApiKey
from models.errors import Unauthenticated
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import access_tokens, authentication
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.context import Context
from resolvers.files import signed_urls
from resolvers.viewer import Viewer
from tests.support.accounts.sign_in_environment import (
    APP_PASSWORD,
    PASSWORD,
    SignInEnvironment,
    add_app_password,
    create_impersonation_token,
    make_admin_context,
    sign_in_by_basic_auth,
)
from tests.support.case_loop import each_case

PATH = "/rest/x"


def signed_query(sign_in_environment: SignInEnvironment, viewer: Viewer) -> dict[str, str]:
    signed_path = signed_urls.sign_path(
        sign_in_environment.environment,
        PATH,
        sign_in_environment.users["ada"],
        viewer,
        now=sign_in_environment.clock(),
    )
    return dict(part.split("=", 1) for part in signed_path.partition("?")[2].split("&"))


async def is_refused(sign_in_environment: SignInEnvironment, query: dict[str, str]) -> bool:
    try:
        viewer = await signed_urls.read_only_viewer_of_signed_path(
            sign_in_environment.environment, PATH, query, ip=None
        )
    except Unauthenticated:
        return True
    assert (viewer.user_id, viewer.read_only) == (sign_in_environment.users["ada"], True)
    return False


async def test_signed_url_ends_with_its_token(sign_in_environment: SignInEnvironment) -> None:
    viewer = await sign_in_environment.authenticate(await sign_in_environment.create_token("ada"))
    query = signed_query(sign_in_environment, viewer)
    assert not await is_refused(sign_in_environment, query)
    await access_tokens.revoke_own_access_tokens_and_count(
        Context(sign_in_environment.environment, viewer)
    )
    assert await is_refused(sign_in_environment, query)


async def test_signed_url_ends_with_its_key(sign_in_environment: SignInEnvironment) -> None:
    row, secret = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("k")
    )
    query = signed_query(sign_in_environment, await sign_in_environment.authenticate(secret))
    assert not await is_refused(sign_in_environment, query)
    async with sign_in_environment.environment.write_session() as session:
        await session.exec(update(ApiKey).where(col(ApiKey.id) == row.id).values(active=False))
    assert await is_refused(sign_in_environment, query)


async def test_signed_url_ends_with_its_app_or_own_password(
    sign_in_environment: SignInEnvironment,
) -> None:
    await add_app_password(sign_in_environment, ["MAIL"])
    app_password_query = signed_query(
        sign_in_environment, await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    )
    own_password_query = signed_query(
        sign_in_environment, await sign_in_by_basic_auth(sign_in_environment, PASSWORD)
    )
    assert not await is_refused(sign_in_environment, app_password_query)
    assert not await is_refused(sign_in_environment, own_password_query)
    await sign_in_environment.change_user("ada", auth_version=2)
    assert await is_refused(sign_in_environment, own_password_query)
    assert not await is_refused(sign_in_environment, app_password_query)
    async with sign_in_environment.environment.write_session() as session:
        await session.exec(delete(ApplicationPassword))
    assert await is_refused(sign_in_environment, app_password_query)


async def test_signed_url_ends_with_the_right_to_read_of_its_credential(
    sign_in_environment: SignInEnvironment,
) -> None:
    await add_app_password(sign_in_environment, ["MAIL"])
    password_viewer = await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    await sign_in_environment.add_user("rex", role=Role.ROOT)
    root_viewer = await sign_in_environment.authenticate(
        await sign_in_environment.create_token("rex")
    )
    narrowed_password = update(ApplicationPassword).values(scopes=[Scope.SUBMIT])
    is_rex = col(User.id) == sign_in_environment.users["rex"]
    for viewer, statement in (
        (password_viewer, narrowed_password),
        (root_viewer, update(User).where(is_rex).values(role=Role.USER)),
    ):
        query = signed_query(sign_in_environment, viewer)
        assert not await is_refused(sign_in_environment, query)
        async with sign_in_environment.environment.write_session() as session:
            await (await session.connection()).execute(statement)
        assert await is_refused(sign_in_environment, query)


@pytest.mark.parametrize("change", [{"active": False}, {"suspended": True}, {"auth_version": 2}])
async def test_signed_url_ends_with_user_change(
    sign_in_environment: SignInEnvironment, change: dict[str, Any]
) -> None:
    query = signed_query(
        sign_in_environment,
        await sign_in_environment.authenticate(await sign_in_environment.create_token("ada")),
    )
    await sign_in_environment.change_user("ada", **change)
    assert await is_refused(sign_in_environment, query)


async def test_signed_url_ends_with_rights_of_acting_admin(
    sign_in_environment: SignInEnvironment,
) -> None:
    query = signed_query(
        sign_in_environment,
        await sign_in_environment.authenticate(
            await create_impersonation_token(
                sign_in_environment, await make_admin_context(sign_in_environment)
            )
        ),
    )
    assert not await is_refused(sign_in_environment, query)
    async with sign_in_environment.environment.write_session() as session:
        is_rex = col(User.id) == sign_in_environment.users["rex"]
        await session.exec(update(User).where(is_rex).values(role=Role.USER))
    assert await is_refused(sign_in_environment, query)


async def test_signed_url_with_changed_credential_is_refused(
    sign_in_environment: SignInEnvironment,
) -> None:
    query = signed_query(
        sign_in_environment,
        await sign_in_environment.authenticate(await sign_in_environment.create_token("ada")),
    )
    for case in each_case(["", "t", "b", "t0", "x7", "t7", "v1", "k9223372036854775808", "é"]):
        with case as credential:
            assert await is_refused(sign_in_environment, {**query, "by": credential})
    await authentication.wait_for_background_tasks(sign_in_environment.environment)

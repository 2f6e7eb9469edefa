"""HTTP Basic authentication (RFC 7617)."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import select, update
from sqlmodel import col

from models.auth.application_passwords import ApplicationPassword
from models.auth.security_log import SecurityEvent
from models.errors import Forbidden, RateLimited, Unauthenticated
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import Role, Scope
from resolvers.auth import authentication
from resolvers.auth.credential_cache import cache_of_database
from resolvers.context import Context
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.support.accounts.sign_in_environment import (
    APP_PASSWORD,
    FULL_SCOPES,
    PASSWORD,
    SignInEnvironment,
    add_app_password,
    basic_auth_header,
    sign_in_by_basic_auth,
)


def make_hash(password: str) -> str:
    return PasswordHasher(1, 8, 1).hash(password)


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (["ALL"], {Scope.MAIL_READ, Scope.MAIL, Scope.SUBMIT}),
        (["MAIL", "IMAP"], {Scope.MAIL_READ, Scope.MAIL}),
        (["SUBMIT"], {Scope.SUBMIT}),
    ],
)
async def test_app_password_signs_in_with_its_http_scopes(
    sign_in_environment: SignInEnvironment, scopes: list[str], expected: set[Scope]
) -> None:
    app_password_id = await add_app_password(sign_in_environment, scopes)
    viewer = await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    assert viewer == Viewer(
        sign_in_environment.users["ada"],
        Role.USER,
        frozenset(expected),
        viewer.permissions,
        app_password_id=app_password_id,
    )
    assert (
        authentication.refuse_own_password(viewer)
        is authentication.refuse_operation_limited_key(viewer)
        is viewer
    )
    assert not await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )


async def test_app_password_without_http_scope_is_refused(
    sign_in_environment: SignInEnvironment,
) -> None:
    await add_app_password(sign_in_environment, ["IMAP", "SMTP"])
    with pytest.raises(Forbidden):
        await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)


async def test_own_password_is_refused_for_graphql_or_with_a_factor(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", role=Role.ADMIN)
    viewer = await sign_in_by_basic_auth(sign_in_environment, PASSWORD)
    assert (viewer.user_id, viewer.role, viewer.scopes) == (
        sign_in_environment.users["ada"],
        Role.USER,
        FULL_SCOPES,
    )
    assert authentication.refuse_operation_limited_key(viewer) is viewer
    with pytest.raises(Forbidden):
        authentication.refuse_own_password(viewer)
    assert not await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )
    await sign_in_environment.change_user("ada", second_factors=["TOTP"])
    assert await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )
    sign_in_environment.clock.tick(seconds=5)
    with pytest.raises(Forbidden):
        await sign_in_by_basic_auth(sign_in_environment, PASSWORD)


@pytest.fixture
def compared_hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that argon2 compares with passwords."""
    compared, verify = list[str](), PasswordHasher.verify

    def record_and_verify(self: PasswordHasher, stored: str, password: str) -> bool:
        compared.append(stored)
        return verify(self, stored, password)

    monkeypatch.setattr(PasswordHasher, "verify", record_and_verify)
    return compared


@pytest.mark.parametrize("password", [PASSWORD, APP_PASSWORD])
async def test_password_is_hashed_once_a_minute(
    sign_in_environment: SignInEnvironment, password: str, compared_hashes: list[str]
) -> None:
    await add_app_password(sign_in_environment, ["MAIL"])
    await sign_in_by_basic_auth(sign_in_environment, password)
    hash_count = len(compared_hashes)
    assert hash_count >= 1
    for _ in range(5):
        sign_in_environment.clock.tick(seconds=10)
        await sign_in_by_basic_auth(sign_in_environment, password)
    assert len(compared_hashes) == hash_count
    sign_in_environment.clock.tick(seconds=10)
    await sign_in_by_basic_auth(sign_in_environment, password)
    assert len(compared_hashes) == 2 * hash_count


async def test_flushed_cache_forgets_password_checks(
    sign_in_environment: SignInEnvironment, compared_hashes: list[str]
) -> None:
    await sign_in_by_basic_auth(sign_in_environment, PASSWORD)
    hash_count = len(compared_hashes)
    assert cache_of_database(sign_in_environment.environment.database).clear_and_count() == 1
    await sign_in_by_basic_auth(sign_in_environment, PASSWORD)
    assert len(compared_hashes) == 2 * hash_count


async def test_wrong_passwords_are_hashed_each_time(
    sign_in_environment: SignInEnvironment, compared_hashes: list[str]
) -> None:
    for count in (1, 2, 3):
        with pytest.raises(Unauthenticated):
            await sign_in_by_basic_auth(sign_in_environment, "wrong")
        assert len(compared_hashes) == count


APP_PASSWORD_CHANGES: dict[str, dict[str, Any]] = {
    "switched off": {"active": False},
    "expired": {"expires_at": datetime(2029, 1, 1, tzinfo=UTC)},
    "another password": {"password": make_hash("another")},
    "protocols alone": {"scopes": ["IMAP"]},
}
USER_CHANGES: dict[str, dict[str, Any]] = {
    "inactive": {"active": False},
    "suspended": {"suspended": True},
    "deleted": {"deleted_at": datetime(2030, 1, 1, tzinfo=UTC)},
    "another password": {"password": make_hash("another")},
    "a second factor": {"second_factors": ["TOTP"]},
}


@pytest.mark.parametrize("name", APP_PASSWORD_CHANGES)
async def test_application_password_that_ends_is_refused_within_a_second(
    sign_in_environment: SignInEnvironment, name: str
) -> None:
    app_password_id = await add_app_password(sign_in_environment, ["MAIL"])
    await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    async with sign_in_environment.environment.write_session() as session:
        condition = col(ApplicationPassword.id) == app_password_id
        await session.exec(
            update(ApplicationPassword).where(condition).values(APP_PASSWORD_CHANGES[name])
        )
    sign_in_environment.clock.tick(seconds=1)
    with pytest.raises((Unauthenticated, Forbidden)):
        await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)


@pytest.mark.parametrize("name", USER_CHANGES)
async def test_account_that_changes_is_refused_within_a_second(
    sign_in_environment: SignInEnvironment, name: str
) -> None:
    await sign_in_by_basic_auth(sign_in_environment, PASSWORD)
    await sign_in_environment.change_user("ada", **USER_CHANGES[name])
    sign_in_environment.clock.tick(seconds=1)
    with pytest.raises((Unauthenticated, Forbidden)):
        await sign_in_by_basic_auth(sign_in_environment, PASSWORD)


async def test_checked_password_runs_no_statement_for_seconds(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    await add_app_password(sign_in_environment, ["MAIL"])
    await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    del statements[:]
    for _ in range(5):
        await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    assert statements == []
    sign_in_environment.clock.tick(seconds=5)
    await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    assert statements != []


async def test_viewer_ends_with_its_app_password(sign_in_environment: SignInEnvironment) -> None:
    app_password_id = await add_app_password(sign_in_environment, ["MAIL"])
    viewer = await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    async with sign_in_environment.environment.write_session() as session:
        condition = col(ApplicationPassword.id) == app_password_id
        await session.exec(update(ApplicationPassword).where(condition).values(active=False))
    authentication.drop_cached_credentials(
        sign_in_environment.environment, sign_in_environment.users["ada"]
    )
    with pytest.raises(Unauthenticated):
        await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    assert await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )


async def test_basic_auth_failures_throttle_the_user(
    sign_in_environment: SignInEnvironment,
) -> None:
    for _ in range(6):
        with pytest.raises(Unauthenticated):
            await sign_in_by_basic_auth(sign_in_environment, "wrong")
    await sign_in_by_basic_auth(sign_in_environment, PASSWORD)  # resets the failures
    sign_in_environment.clock.tick(seconds=5)
    for _ in range(12):
        with pytest.raises(Unauthenticated):
            await sign_in_by_basic_auth(sign_in_environment, "wrong")
    with pytest.raises(RateLimited):
        await sign_in_by_basic_auth(sign_in_environment, PASSWORD)


async def test_basic_auth_is_logged_once_an_hour(sign_in_environment: SignInEnvironment) -> None:
    await add_app_password(sign_in_environment, ["MAIL"])
    for _ in range(10):
        await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
        await authentication.wait_for_background_tasks(sign_in_environment.environment)
        sign_in_environment.clock.tick(minutes=15)
    rows: list[Any] = list(
        await sign_in_environment.environment.database.read(select(core_table(SecurityEvent)))
    )
    assert [(row.protocol, row.result, row.count) for row in rows] == [("HTTP", "SUCCESS", 3)]


@pytest.mark.parametrize(
    "credentials",
    ["", "!", "YWRh", "Og==", "OnB3", "YWRhOg==", "YWRhOv8=", "YWRhOngA", "A" * 9999],
)
async def test_malformed_header_is_refused_without_a_statement(
    sign_in_environment: SignInEnvironment, credentials: str, statements: list[str]
) -> None:
    del statements[:]
    with pytest.raises(Unauthenticated):
        await authentication.authenticate_request(
            sign_in_environment.environment, {"authorization": f"Basic {credentials}"}, ip=None
        )
    assert statements == []


async def test_own_password_over_http_is_valid_for_paths_only(
    environment: Environment, http: httpx.AsyncClient
) -> None:
    root_context = Context(environment, Viewer(role=Role.ROOT, scopes=FULL_SCOPES))
    await creation_create.create_user(
        root_context, NewUser(address="eve@example.org", username="eve", password=PASSWORD)
    )
    valid_headers = {"Authorization": basic_auth_header("eve", PASSWORD)["authorization"]}

    async def request_viewer(headers: dict[str, str]) -> Any:
        body = {"query": "{ viewer { role } }"}
        return await http.post("/graphql", json=body, headers=headers)

    assert (await request_viewer(valid_headers)).json()["errors"][0]["extensions"][
        "code"
    ] == "FORBIDDEN"
    upload_response = await http.post("/rest/uploads", content=b"x", headers=valid_headers)
    assert upload_response.status_code == 201
    wrong_headers = {"Authorization": basic_auth_header("eve", "wrong")["authorization"]}
    answers = [
        await http.post("/rest/uploads", content=b"x", headers=wrong_headers) for _ in range(13)
    ]
    assert [answer.status_code for answer in answers] == [401] * 12 + [429]
    assert int(answers[-1].headers["retry-after"]) == 120
    # browsers don't prompt for credentials
    assert "basic" not in answers[0].headers["www-authenticate"].lower()

"""`Authorization: Basic`."""

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
from resolvers.context import Context, Viewer
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.support.accounts.sign_in_environment import (
    APP_PASSWORD,
    MASTER_SCOPES,
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
async def test_a_programs_password_is_good_for_what_of_http_it_has(
    sign_in_environment: SignInEnvironment, scopes: list[str], expected: set[Scope]
) -> None:
    key = await add_app_password(sign_in_environment, scopes)
    viewer = await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    assert viewer == Viewer(
        sign_in_environment.users["ada"],
        Role.USER,
        frozenset(expected),
        viewer.permissions,
        app_password_id=key,
    )
    assert (
        authentication.require_document_credential(viewer)
        is authentication.require_path_credential(viewer)
        is viewer
    )
    assert not await authentication.has_credential_ended(sign_in_environment.world, viewer)


async def test_a_password_for_protocols_alone_is_refused(
    sign_in_environment: SignInEnvironment,
) -> None:
    await add_app_password(sign_in_environment, ["IMAP", "SMTP"])
    with pytest.raises(Forbidden):
        await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)


async def test_an_accounts_password_is_for_paths_and_without_factors(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", role=Role.ADMIN)
    viewer = await sign_in_by_basic_auth(sign_in_environment, PASSWORD)
    assert (viewer.user_id, viewer.role, viewer.scopes) == (
        sign_in_environment.users["ada"],
        Role.USER,
        MASTER_SCOPES,
    )
    assert authentication.require_path_credential(viewer) is viewer
    with pytest.raises(Forbidden):
        authentication.require_document_credential(viewer)
    assert not await authentication.has_credential_ended(sign_in_environment.world, viewer)
    await sign_in_environment.change_user("ada", second_factors=["TOTP"])
    assert await authentication.has_credential_ended(sign_in_environment.world, viewer)
    sign_in_environment.clock.tick(seconds=5)
    with pytest.raises(Forbidden):
        await sign_in_by_basic_auth(sign_in_environment, PASSWORD)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that argon2 has compared with passwords."""
    compared, verify = list[str](), PasswordHasher.verify

    def note(self: PasswordHasher, stored: str, password: str) -> bool:
        compared.append(stored)
        return verify(self, stored, password)

    monkeypatch.setattr(PasswordHasher, "verify", note)
    return compared


@pytest.mark.parametrize("password", [PASSWORD, APP_PASSWORD])
async def test_password_is_hashed_once_a_minute(
    sign_in_environment: SignInEnvironment, password: str, hashes: list[str]
) -> None:
    await add_app_password(sign_in_environment, ["MAIL"])
    await sign_in_by_basic_auth(sign_in_environment, password)
    once = len(hashes)
    assert once >= 1
    for _ in range(5):
        sign_in_environment.clock.tick(seconds=10)
        await sign_in_by_basic_auth(sign_in_environment, password)
    assert len(hashes) == once
    sign_in_environment.clock.tick(seconds=10)
    await sign_in_by_basic_auth(sign_in_environment, password)
    assert len(hashes) == 2 * once


async def test_flushed_cache_forgets_password_checks(
    sign_in_environment: SignInEnvironment, hashes: list[str]
) -> None:
    await sign_in_by_basic_auth(sign_in_environment, PASSWORD)
    once = len(hashes)
    assert cache_of_database(sign_in_environment.world.database).clear() == 1
    await sign_in_by_basic_auth(sign_in_environment, PASSWORD)
    assert len(hashes) == 2 * once


async def test_wrong_passwords_are_hashed_each_time(
    sign_in_environment: SignInEnvironment, hashes: list[str]
) -> None:
    for count in (1, 2, 3):
        with pytest.raises(Unauthenticated):
            await sign_in_by_basic_auth(sign_in_environment, "wrong")
        assert len(hashes) == count


PROGRAMS: dict[str, dict[str, Any]] = {
    "switched off": {"active": False},
    "expired": {"expires_at": datetime(2029, 1, 1, tzinfo=UTC)},
    "another password": {"password": make_hash("another")},
    "protocols alone": {"scopes": ["IMAP"]},
}
ACCOUNTS: dict[str, dict[str, Any]] = {
    "disabled": {"disabled": True},
    "suspended": {"suspended": True},
    "deleted": {"deleted_at": datetime(2030, 1, 1, tzinfo=UTC)},
    "another password": {"password": make_hash("another")},
    "a second factor": {"second_factors": ["TOTP"]},
}


@pytest.mark.parametrize("name", PROGRAMS)
async def test_application_password_that_ends_is_refused_within_a_second(
    sign_in_environment: SignInEnvironment, name: str
) -> None:
    key = await add_app_password(sign_in_environment, ["MAIL"])
    await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    async with sign_in_environment.world.write_session() as session:
        row = col(ApplicationPassword.id) == key
        await session.exec(update(ApplicationPassword).where(row).values(PROGRAMS[name]))
    sign_in_environment.clock.tick(seconds=1)
    with pytest.raises((Unauthenticated, Forbidden)):
        await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)


@pytest.mark.parametrize("name", ACCOUNTS)
async def test_account_that_changes_is_refused_within_a_second(
    sign_in_environment: SignInEnvironment, name: str
) -> None:
    await sign_in_by_basic_auth(sign_in_environment, PASSWORD)
    await sign_in_environment.change_user("ada", **ACCOUNTS[name])
    sign_in_environment.clock.tick(seconds=1)
    with pytest.raises((Unauthenticated, Forbidden)):
        await sign_in_by_basic_auth(sign_in_environment, PASSWORD)


async def test_what_was_right_is_not_hashed_again_for_seconds(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    await add_app_password(sign_in_environment, ["MAIL"])
    await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    await authentication.wait_for_background_tasks(sign_in_environment.world)
    del statements[:]
    for _ in range(5):
        await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    assert statements == []
    sign_in_environment.clock.tick(seconds=5)
    await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    assert statements != []


async def test_it_ends_when_the_password_does(sign_in_environment: SignInEnvironment) -> None:
    key = await add_app_password(sign_in_environment, ["MAIL"])
    viewer = await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    async with sign_in_environment.world.write_session() as session:
        row = col(ApplicationPassword.id) == key
        await session.exec(update(ApplicationPassword).where(row).values(active=False))
    authentication.drop_credentials(sign_in_environment.world, sign_in_environment.users["ada"])
    with pytest.raises(Unauthenticated):
        await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
    assert await authentication.has_credential_ended(sign_in_environment.world, viewer)


async def test_failures_close_the_name_as_anywhere(sign_in_environment: SignInEnvironment) -> None:
    for _ in range(6):
        with pytest.raises(Unauthenticated):
            await sign_in_by_basic_auth(sign_in_environment, "wrong")
    await sign_in_by_basic_auth(sign_in_environment, PASSWORD)  # begins afresh
    sign_in_environment.clock.tick(seconds=5)
    for _ in range(12):
        with pytest.raises(Unauthenticated):
            await sign_in_by_basic_auth(sign_in_environment, "wrong")
    with pytest.raises(RateLimited):
        await sign_in_by_basic_auth(sign_in_environment, PASSWORD)


async def test_the_use_is_in_the_log_once_an_hour(sign_in_environment: SignInEnvironment) -> None:
    await add_app_password(sign_in_environment, ["MAIL"])
    for _ in range(10):
        await sign_in_by_basic_auth(sign_in_environment, APP_PASSWORD)
        await authentication.wait_for_background_tasks(sign_in_environment.world)
        sign_in_environment.clock.tick(minutes=15)
    rows: list[Any] = list(
        await sign_in_environment.world.database.read(select(core_table(SecurityEvent)))
    )
    assert [(row.protocol, row.result, row.count) for row in rows] == [("HTTP", "success", 3)]


@pytest.mark.parametrize(
    "text",
    ["", "!", "YWRh", "Og==", "OnB3", "YWRhOg==", "YWRhOv8=", "YWRhOngA", "A" * 9999],
)
async def test_what_is_none_is_refused_without_a_hash(
    sign_in_environment: SignInEnvironment, text: str, statements: list[str]
) -> None:
    del statements[:]
    with pytest.raises(Unauthenticated):
        await authentication.authenticate_request(
            sign_in_environment.world, {"authorization": f"Basic {text}"}, ip=None
        )
    assert statements == []


async def test_over_http(world: Environment, http: httpx.AsyncClient) -> None:
    boss = Context(world, Viewer(role=Role.ROOT, scopes=MASTER_SCOPES))
    await creation_create.create_user(
        boss, NewUser(address="eve@example.org", username="eve", password=PASSWORD)
    )
    good = {"Authorization": basic_auth_header("eve", PASSWORD)["authorization"]}

    async def asked(headers: dict[str, str]) -> Any:
        body = {"query": "{ viewer { role } }"}
        return await http.post("/graphql", json=body, headers=headers)

    assert (await asked(good)).json()["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    sent = await http.post("/rest/uploads", content=b"x", headers=good)
    assert sent.status_code == 201
    wrong = {"Authorization": basic_auth_header("eve", "wrong")["authorization"]}
    answers = [await http.post("/rest/uploads", content=b"x", headers=wrong) for _ in range(13)]
    assert [answer.status_code for answer in answers] == [401] * 12 + [429]
    assert int(answers[-1].headers["retry-after"]) == 120
    assert "basic" not in answers[0].headers["www-authenticate"].lower()  # no page prompts for it

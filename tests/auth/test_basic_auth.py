"""`Authorization: Basic`."""

import base64
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import select, update
from sqlmodel import col

from models.auth.application_passwords import AppPassword
from models.auth.security_log import AuthEvent
from models.errors import Forbidden, RateLimited, Unauthenticated
from models.runtime.environment import World
from models.store.columns import table_of
from models.users.roles import Role, Scope
from resolvers.auth import authentication
from resolvers.auth.credential_cache import memory_of
from resolvers.context import Context, Viewer
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.auth.conftest import MASTER, PASSWORD, Town
from tests.auth.test_credential_scopes import PROGRAM, program


def make_hash(password: str) -> str:
    return PasswordHasher(1, 8, 1).hash(password)


def shown(name: str, password: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


async def signed(town: Town, password: str, name: str = "ada") -> Viewer:
    return await authentication.sign_in(town.world, shown(name, password), ip="192.0.2.1")


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (["ALL"], {Scope.MAIL_READ, Scope.MAIL, Scope.SUBMIT}),
        (["MAIL", "IMAP"], {Scope.MAIL_READ, Scope.MAIL}),
        (["SUBMIT"], {Scope.SUBMIT}),
    ],
)
async def test_a_programs_password_is_good_for_what_of_http_it_has(
    town: Town, scopes: list[str], expected: set[Scope]
) -> None:
    key = await program(town, scopes)
    viewer = await signed(town, PROGRAM)
    assert viewer == Viewer(
        town.users["ada"],
        Role.USER,
        frozenset(expected),
        viewer.permissions,
        app_password_id=key,
    )
    assert authentication.for_documents(viewer) is authentication.for_paths(viewer) is viewer
    assert not await authentication.ended(town.world, viewer)


async def test_a_password_for_protocols_alone_is_refused(town: Town) -> None:
    await program(town, ["IMAP", "SMTP"])
    with pytest.raises(Forbidden):
        await signed(town, PROGRAM)


async def test_an_accounts_password_is_for_paths_and_without_factors(town: Town) -> None:
    await town.change("ada", role=Role.ADMIN)
    viewer = await signed(town, PASSWORD)
    assert (viewer.user_id, viewer.role, viewer.scopes) == (town.users["ada"], Role.USER, MASTER)
    assert authentication.for_paths(viewer) is viewer
    with pytest.raises(Forbidden):
        authentication.for_documents(viewer)
    assert not await authentication.ended(town.world, viewer)
    await town.change("ada", second_factors=["TOTP"])
    assert await authentication.ended(town.world, viewer)
    town.clock.tick(seconds=5)
    with pytest.raises(Forbidden):
        await signed(town, PASSWORD)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that argon2 has compared with passwords."""
    compared, verify = list[str](), PasswordHasher.verify

    def note(self: PasswordHasher, stored: str, password: str) -> bool:
        compared.append(stored)
        return verify(self, stored, password)

    monkeypatch.setattr(PasswordHasher, "verify", note)
    return compared


@pytest.mark.parametrize("password", [PASSWORD, PROGRAM])
async def test_password_is_hashed_once_a_minute(
    town: Town, password: str, hashes: list[str]
) -> None:
    await program(town, ["MAIL"])
    await signed(town, password)
    once = len(hashes)
    assert once >= 1
    for _ in range(5):
        town.clock.tick(seconds=10)
        await signed(town, password)
    assert len(hashes) == once
    town.clock.tick(seconds=10)
    await signed(town, password)
    assert len(hashes) == 2 * once


async def test_flushed_cache_forgets_password_checks(town: Town, hashes: list[str]) -> None:
    await signed(town, PASSWORD)
    once = len(hashes)
    assert memory_of(town.world.database).clear() == 1
    await signed(town, PASSWORD)
    assert len(hashes) == 2 * once


async def test_wrong_passwords_are_hashed_each_time(town: Town, hashes: list[str]) -> None:
    for count in (1, 2, 3):
        with pytest.raises(Unauthenticated):
            await signed(town, "wrong")
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
    town: Town, name: str
) -> None:
    key = await program(town, ["MAIL"])
    await signed(town, PROGRAM)
    async with town.world.write() as session:
        row = col(AppPassword.id) == key
        await session.exec(update(AppPassword).where(row).values(PROGRAMS[name]))
    town.clock.tick(seconds=1)
    with pytest.raises((Unauthenticated, Forbidden)):
        await signed(town, PROGRAM)


@pytest.mark.parametrize("name", ACCOUNTS)
async def test_account_that_changes_is_refused_within_a_second(town: Town, name: str) -> None:
    await signed(town, PASSWORD)
    await town.change("ada", **ACCOUNTS[name])
    town.clock.tick(seconds=1)
    with pytest.raises((Unauthenticated, Forbidden)):
        await signed(town, PASSWORD)


async def test_what_was_right_is_not_hashed_again_for_seconds(
    town: Town, statements: list[str]
) -> None:
    await program(town, ["MAIL"])
    await signed(town, PROGRAM)
    await authentication.settle(town.world)
    del statements[:]
    for _ in range(5):
        await signed(town, PROGRAM)
    assert statements == []
    town.clock.tick(seconds=5)
    await signed(town, PROGRAM)
    assert statements != []


async def test_it_ends_when_the_password_does(town: Town) -> None:
    key = await program(town, ["MAIL"])
    viewer = await signed(town, PROGRAM)
    async with town.world.write() as session:
        row = col(AppPassword.id) == key
        await session.exec(update(AppPassword).where(row).values(active=False))
    authentication.forget(town.world, town.users["ada"])
    with pytest.raises(Unauthenticated):
        await signed(town, PROGRAM)
    assert await authentication.ended(town.world, viewer)


async def test_failures_close_the_name_as_anywhere(town: Town) -> None:
    for _ in range(6):
        with pytest.raises(Unauthenticated):
            await signed(town, "wrong")
    await signed(town, PASSWORD)  # begins afresh
    town.clock.tick(seconds=5)
    for _ in range(12):
        with pytest.raises(Unauthenticated):
            await signed(town, "wrong")
    with pytest.raises(RateLimited):
        await signed(town, PASSWORD)


async def test_the_use_is_in_the_log_once_an_hour(town: Town) -> None:
    await program(town, ["MAIL"])
    for _ in range(10):
        await signed(town, PROGRAM)
        await authentication.settle(town.world)
        town.clock.tick(minutes=15)
    rows: list[Any] = list(await town.world.database.read(select(table_of(AuthEvent))))
    assert [(row.protocol, row.result, row.count) for row in rows] == [("HTTP", "success", 3)]


@pytest.mark.parametrize(
    "text",
    ["", "!", "YWRh", "Og==", "OnB3", "YWRhOg==", "YWRhOv8=", "YWRhOngA", "A" * 9999],
)
async def test_what_is_none_is_refused_without_a_hash(
    town: Town, text: str, statements: list[str]
) -> None:
    del statements[:]
    with pytest.raises(Unauthenticated):
        await authentication.sign_in(town.world, {"authorization": f"Basic {text}"}, ip=None)
    assert statements == []


async def test_over_http(world: World, http: httpx.AsyncClient) -> None:
    boss = Context(world, Viewer(role=Role.ROOT, scopes=MASTER))
    await creation_create.create(
        boss, NewUser(address="eve@example.org", username="eve", password=PASSWORD)
    )
    good = {"Authorization": shown("eve", PASSWORD)["authorization"]}

    async def asked(headers: dict[str, str]) -> Any:
        body = {"query": "{ viewer { role } }"}
        return await http.post("/graphql", json=body, headers=headers)

    assert (await asked(good)).json()["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    sent = await http.post("/rest/uploads", content=b"x", headers=good)
    assert sent.status_code == 201
    wrong = {"Authorization": shown("eve", "wrong")["authorization"]}
    answers = [await http.post("/rest/uploads", content=b"x", headers=wrong) for _ in range(13)]
    assert [answer.status_code for answer in answers] == [401] * 12 + [429]
    assert int(answers[-1].headers["retry-after"]) == 120
    assert "basic" not in answers[0].headers["www-authenticate"].lower()  # no page prompts for it

"""Settings that all servers of a database must share are compared when a server starts."""

import asyncio
import os
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mail.maintenance.restore_mark import RestoreGuard, load_and_enter_incarnation
from mail.recipients import address_resolution
from mail.storage import received_messages
from mail.storage.blobs.object_names import OWNER_MARK
from merganser.commands.domains import domain_operations
from merganser.errors import CommandError
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings
from models.runtime import leases
from models.runtime.environment import Environment
from models.store.database import Database
from tests.conftest import make_user, raw_message
from tests.support.stores import store_fixtures

POSTGRES = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)


def make_settings(folder: Path, name: str, database_url: str, **changes: Any) -> Settings:
    values: dict[str, Any] = {"object_store_url": str(folder / "blobs"), **changes}
    return Settings(data=folder / name, database_url=database_url, **values)


@pytest.fixture
async def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("postgres")
    database = Database(url)
    await store_fixtures.empty_database(database)
    await database.close()
    return url


async def register_process(environment: Environment, server_id: str) -> None:
    """Register the process of the environment, as a starting server does."""
    environment.process.server_id = server_id
    await leases.ensure_process_registered(environment)


def copy_to_second(folder: Path, file_name: str) -> None:
    shutil.copy(folder / "first" / file_name, folder / "second" / file_name)


async def startup_error(server_settings: Settings) -> str:
    with pytest.raises(CommandError) as raised:
        async with open_environment(server_settings):
            pass
    return raised.value.message


async def store_content(environment: Environment, content: str) -> None:
    """Store a user, or a user and a message, or nothing."""
    if content == "nothing":
        return
    await domain_operations.create_domain(environment, "example.org", {}, creates_dkim_key=False)
    ada = await make_user(environment, "ada")
    if content == "messages":
        message = await received_messages.parse_storable_message(raw_message("Hello"))
        recipient = await address_resolution.load_recipient_below_limits(
            environment, f"{ada.username}@example.org"
        )
        await received_messages.store_once_for_recipient(
            environment, message, recipient, "carol@example.com"
        )


@POSTGRES
async def test_servers_that_start_at_once_have_one_key_file(
    database_url: str, tmp_path: Path
) -> None:
    names = ["a", "b", "c"]
    secret = SecretStr("s" * 40)

    async def start(name: str) -> str:
        try:
            async with open_environment(
                make_settings(tmp_path, name, database_url, signing_secret=secret)
            ):
                return ""
        except CommandError as error:
            return error.message

    messages = await asyncio.gather(*map(start, names))
    started = [name for name in names if (tmp_path / name / "vault").exists()]
    assert len(started) == 1
    key_file = tmp_path / started[0] / "vault"
    assert sorted(bool(text) for text in messages) == [False, True, True]
    assert all(f"where it is {key_file}" in text for text in messages if text)
    for name in names:
        if name not in started:
            shutil.copy(key_file, tmp_path / name / "vault")
        assert await start(name) == ""


@POSTGRES
async def test_second_server_needs_secret_key_file_and_objects_of_the_first(
    database_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            open_environment(make_settings(tmp_path, "first", database_url))
        )
        await register_process(first, "first")
        second_settings = make_settings(tmp_path, "second", database_url)
        assert f"where it is {tmp_path}/first/vault" in await startup_error(second_settings)
        copy_to_second(tmp_path, "vault")
        assert f"copy {tmp_path}/first/secret from" in await startup_error(second_settings)
        copy_to_second(tmp_path, "secret")
        await first.object_store.put("00/a", b"a")
        await store_content(first, "messages")
        other_settings = make_settings(
            tmp_path, "second", database_url, object_store_url=str(tmp_path / "other")
        )
        assert f"Set it as on the server {os.uname().nodename}" in await startup_error(
            other_settings
        )
        assert f"is {tmp_path}/blobs" in await startup_error(other_settings)
        async with open_environment(second_settings):
            pass
        with (tmp_path / "second" / "vault").open("a") as file:
            file.write(f"abcdef01 {'ab' * 32}\n")
        assert "the key abcdef01" in await startup_error(second_settings)
        assert not [
            stored_object
            async for stored_object in first.object_store.list()
            if stored_object.name == OWNER_MARK
        ]


@POSTGRES
@pytest.mark.parametrize("content", ["nothing", "users", "messages"])
@pytest.mark.parametrize("is_first_running", [True, False])
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
async def test_second_server_with_its_own_object_store_is_refused(
    database_url: str, tmp_path: Path, names: tuple[str, str], is_first_running: bool, content: str
) -> None:
    first_settings, second_settings = [
        make_settings(
            tmp_path,
            name,
            database_url,
            object_store_url=str(tmp_path / name / "blobs"),
            signing_secret=SecretStr("s" * 40),
            encryption_keys_file=tmp_path / "vault",
        )
        for name in names
    ]
    second_blobs = tmp_path / names[1] / "blobs"
    async with AsyncExitStack() as stack:
        environment = await stack.enter_async_context(open_environment(first_settings))
        guard = RestoreGuard(environment)
        await guard.begin_incarnation_if_restored_and_write_mark()
        await store_content(environment, content)
        before = await load_and_enter_incarnation(environment)
        if not is_first_running:
            await guard.write_clean_stop_mark()
            await stack.aclose()
        for _ in range(2):
            error = await startup_error(second_settings)
            assert f"{second_blobs} has no object {OWNER_MARK}" in error
            assert f"where it is {tmp_path / names[0] / 'blobs'}" in error
            assert not [path for path in second_blobs.rglob("*") if path.is_file()]
    async with open_environment(first_settings) as environment:
        await RestoreGuard(environment).begin_incarnation_if_restored_and_write_mark()
        after = await load_and_enter_incarnation(environment)
    assert (after.number, after.base) == (before.number, before.base)


@POSTGRES
async def test_one_of_several_servers_with_own_object_stores_starts(
    database_url: str, tmp_path: Path
) -> None:
    async def start(name: str) -> str:
        settings = make_settings(
            tmp_path,
            name,
            database_url,
            object_store_url=str(tmp_path / name / "blobs"),
            signing_secret=SecretStr("s" * 40),
            encryption_keys_file=tmp_path / "vault",
        )
        try:
            async with open_environment(settings):
                return ""
        except CommandError as error:
            return error.message

    messages = await asyncio.gather(*map(start, ["a", "b", "c"]))
    assert sorted(OWNER_MARK in message for message in messages) == [False, True, True]
    assert sum((tmp_path / name / "blobs" / OWNER_MARK).exists() for name in "abc") == 1


@POSTGRES
async def test_secret_can_change_if_no_other_server_runs(database_url: str, tmp_path: Path) -> None:
    for secret in ("a" * 40, "b" * 40):
        async with open_environment(
            make_settings(tmp_path, "first", database_url, signing_secret=SecretStr(secret))
        ):
            pass

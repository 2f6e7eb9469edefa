"""What all servers of a store must have in common is compared when one starts."""

import asyncio
import os
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mail.recipients import address_resolution
from mail.storage import received_messages
from mail.storage.blobs.object_stores import OWNER_MARK
from merganser.commands import domain_operations
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


def settings(folder: Path, name: str, store: str, **more: Any) -> Settings:
    given: dict[str, Any] = {"blobs": str(folder / "blobs"), **more}
    return Settings(data=folder / name, store=store, **given)


@pytest.fixture
async def store(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("postgres")
    database = Database(url)
    await store_fixtures.emptied(database)
    await database.close()
    return url


async def serve(world: Environment, name: str) -> None:
    """Register the world's process, as a server does when it starts."""
    world.process.server_id = name
    await leases.ensure_registered(world)


def copy(folder: Path, name: str) -> None:
    shutil.copy(folder / "first" / name, folder / "second" / name)


async def reason(given: Settings) -> str:
    with pytest.raises(CommandError) as refused:
        async with open_environment(given):
            pass
    return refused.value.message


@POSTGRES
async def test_servers_that_start_at_once_have_one_key_file(store: str, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    secret = SecretStr("s" * 40)

    async def start(name: str) -> str:
        try:
            async with open_environment(settings(tmp_path, name, store, secret=secret)):
                return ""
        except CommandError as refused:
            return refused.message

    said = await asyncio.gather(*map(start, names))
    made = [name for name in names if (tmp_path / name / "vault").exists()]
    assert len(made) == 1
    place = tmp_path / made[0] / "vault"
    assert sorted(bool(text) for text in said) == [False, True, True]
    assert all(f"where it is {place}" in text for text in said if text)
    for name in names:
        if name not in made:
            shutil.copy(place, tmp_path / name / "vault")
        assert await start(name) == ""


@POSTGRES
async def test_second_server_must_have_secret_key_file_and_objects_of_the_first(
    store: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            open_environment(settings(tmp_path, "first", store))
        )
        await serve(first, "first")
        second = settings(tmp_path, "second", store)
        assert f"where it is {tmp_path}/first/vault" in await reason(second)
        copy(tmp_path, "vault")
        assert f"copy {tmp_path}/first/secret from" in await reason(second)
        copy(tmp_path, "secret")
        await first.object_store.put("00/a", b"a")
        await domain_operations.create_domain(first, "example.org", {}, creates_dkim_key=False)
        ada = await make_user(first, "ada")
        letter = await received_messages.read_message(raw_message("Hello"))
        to = await address_resolution.load_recipient(first, f"{ada.username}@example.org")
        await received_messages.store_for_recipient(first, letter, to, "carol@example.com")
        other = settings(tmp_path, "second", store, blobs=str(tmp_path / "other"))
        assert f"set it as on the server {os.uname().nodename}" in await reason(other)
        assert f"is {tmp_path}/blobs" in await reason(other)
        async with open_environment(second):
            pass
        with (tmp_path / "second" / "vault").open("a") as file:
            file.write(f"abcdef01 {'ab' * 32}\n")
        assert "the key abcdef01" in await reason(second)
        assert not [one async for one in first.object_store.list() if one.name == OWNER_MARK]


@POSTGRES
async def test_secret_can_change_while_no_other_server_runs(store: str, tmp_path: Path) -> None:
    for secret in ("a" * 40, "b" * 40):
        async with open_environment(settings(tmp_path, "first", store, secret=SecretStr(secret))):
            pass

"""A store is used by servers, or by one command that needs it alone; registrations tell which."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert, select
from sqlmodel import col

from merganser.commands import key_rotation
from merganser.errors import CommandError
from merganser.server import key_file
from merganser.server.server_identity import hold_server_id
from merganser.server.store.store_use import use_beside_servers, use_exclusively
from merganser.settings.settings import Settings
from models.auth.credentials import SecretBoxKey
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.server_processes import ServerProcess
from models.store.columns import core_table
from tests.support.mail_servers.queue_worker import until
from tests.support.stores.other_processes import another_process


def settings_of(world: Environment, folder: Path) -> Settings:
    return Settings(data=folder, store=world.database.url)


async def names(world: Environment) -> list[str]:
    rows = await world.database.read(select(col(ServerProcess.name)))
    return sorted(row.name for row in rows)


async def test_no_command_has_the_store_alone_beside_a_live_server(
    world: Environment, tmp_path: Path
) -> None:
    """The server holds no lock, as after a restart of PostgreSQL, but it sends heartbeats."""
    settings, command = settings_of(world, tmp_path), another_process(world)
    async with use_beside_servers(another_process(world, name="server")):
        with pytest.raises(CommandError, match=r"a merganser uses this store at .*stop it"):
            async with use_exclusively(command, settings, "repair"):
                raise AssertionError("it must not begin")
        assert await names(world) == ["server"]
    async with use_exclusively(another_process(world), settings, "repair"):
        assert await names(world) == ["repair"]
    assert await names(world) == []


async def test_keys_stay_as_they_are_beside_a_live_server(
    world: Environment, tmp_path: Path
) -> None:
    settings, command = settings_of(world, tmp_path), another_process(world)
    key_file.write_keys(key_file.key_file_path(settings), world.secret_box.keys)
    before = key_file.key_file_path(settings).read_text()
    async with use_beside_servers(another_process(world, name="server")):
        with pytest.raises(CommandError, match="stop it, then make other keys"):
            await key_rotation.rotate_keys(command, settings, lambda _done, _all: None)
    assert key_file.key_file_path(settings).read_text() == before
    done = await key_rotation.rotate_keys(
        another_process(world), settings, lambda _done, _all: None
    )
    assert list(key_file.read_keys(key_file.key_file_path(settings))) == [done.new_key_name]


async def test_a_dead_server_is_waited_for_and_no_longer(
    world: Environment, tmp_path: Path
) -> None:
    dead = another_process(world, name="dead")
    await leases.ensure_registered(dead)  # and no heartbeat follows
    async with use_exclusively(another_process(world), settings_of(world, tmp_path), "repair"):
        assert await names(world) == ["repair"]


async def test_no_server_begins_while_a_command_has_the_store(
    world: Environment, tmp_path: Path
) -> None:
    async with use_exclusively(another_process(world), settings_of(world, tmp_path), "repair"):
        with pytest.raises(CommandError, match="a command that has to repair"):
            async with use_beside_servers(another_process(world, name="server")):
                raise AssertionError("it must not begin")
    async with use_beside_servers(another_process(world, name="server")):
        assert await names(world) == ["server"]


async def test_a_server_that_wakes_up_beside_such_a_command_ends(world: Environment) -> None:
    server, told = another_process(world, name="server"), asyncio.Event()
    server.process.on_reserved = told.set
    async with use_beside_servers(server):
        await leases.delete_server(world, server.process.server_id)  # it was stopped for too long
        command = another_process(world, name="command")
        command.process.exclusive_purpose = "repair"
        await leases.ensure_registered(command)
        async with asyncio.timeout(10):
            await told.wait()
        assert await names(world) == ["command"]
        await leases.deregister_process(command)


async def test_a_server_that_wakes_up_with_former_keys_ends(world: Environment) -> None:
    server, told = another_process(world, name="server"), asyncio.Event()
    server.process.on_reserved = told.set
    async with use_beside_servers(server):
        other = {"name": "later", "proof": "x", "created_at": world.now()}
        async with world.write_session() as session:
            await (await session.connection()).execute(insert(core_table(SecretBoxKey)), other)
        await leases.delete_server(world, server.process.server_id)
        async with asyncio.timeout(10):
            await told.wait()
    assert await names(world) == []


async def test_a_dead_command_does_not_keep_servers_out(world: Environment) -> None:
    command = another_process(world, name="command")
    command.process.exclusive_purpose = "repair"
    await leases.ensure_registered(command)  # and no heartbeat follows
    async with use_beside_servers(another_process(world, name="server")):

        async def alone() -> bool:
            return await names(world) == ["server"]

        await until(alone)


def test_a_restart_keeps_the_identity_and_a_copy_has_another(tmp_path: Path) -> None:
    one, copy = tmp_path / "one", tmp_path / "copy"
    one.mkdir()
    copy.mkdir()
    with hold_server_id(one) as first, hold_server_id(one) as beside:
        assert first != beside
    with hold_server_id(one) as again:
        assert again == first
    (copy / "server-id").write_bytes((one / "server-id").read_bytes())
    with hold_server_id(copy) as other:
        assert other != first


async def test_the_world_of_a_command_keeps_its_registration(world: Environment) -> None:
    command = another_process(world)
    changed = replace(command, signing_secret=b"t" * 32)
    assert await leases.ensure_registered(changed) == await leases.ensure_registered(command)

"""Process registrations: servers, and commands that need exclusive use of the database."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert

from merganser.commands.admin import key_rotation
from merganser.errors import CommandError
from merganser.server import key_file
from merganser.server.server_identity import hold_server_id
from merganser.server.store.store_use import (
    register_process_beside_servers,
    use_database_exclusively,
)
from merganser.settings.settings import Settings
from models.auth.credentials import SecretBoxKey
from models.runtime import leases
from models.runtime.environment import Environment
from models.store.columns import core_table
from tests.support.stores.other_processes import (
    load_registered_names,
    make_other_process,
    wait_until_unregistered,
)
from tests.support.time_limits import HANG_SECONDS


def make_settings(environment: Environment, folder: Path) -> Settings:
    return Settings(data=folder, database_url=environment.database.url)


async def test_exclusive_command_is_refused_beside_a_live_server(
    environment: Environment, tmp_path: Path
) -> None:
    """The server holds no lock, as after a restart of PostgreSQL, but it sends heartbeats."""
    settings, command = make_settings(environment, tmp_path), make_other_process(environment)
    async with register_process_beside_servers(make_other_process(environment, name="server")):
        with pytest.raises(
            CommandError, match=r"Merganser servers use this database at .*stop them"
        ):
            async with use_database_exclusively(command, settings, "repair"):
                raise AssertionError("it must not begin")
        assert await load_registered_names(environment) == ["server"]
    async with use_database_exclusively(make_other_process(environment), settings, "repair"):
        assert await load_registered_names(environment) == ["repair"]
    assert await load_registered_names(environment) == []


async def test_key_rotation_is_refused_beside_a_live_server(
    environment: Environment, tmp_path: Path
) -> None:
    settings, command = make_settings(environment, tmp_path), make_other_process(environment)
    key_file.write_key_file(key_file.key_file_path(settings), environment.secret_box.keys)
    before = key_file.key_file_path(settings).read_text()
    async with register_process_beside_servers(make_other_process(environment, name="server")):
        with pytest.raises(CommandError, match=r"stop them, then rotate the keys\.$"):
            await key_rotation.rotate_encryption_keys(command, settings, lambda _done, _all: None)
    assert key_file.key_file_path(settings).read_text() == before
    rotation = await key_rotation.rotate_encryption_keys(
        make_other_process(environment), settings, lambda _done, _all: None
    )
    assert list(key_file.read_encryption_keys_by_name(key_file.key_file_path(settings))) == [
        rotation.new_key_name
    ]


async def test_exclusive_command_waits_for_a_dead_server(
    environment: Environment, tmp_path: Path
) -> None:
    dead = make_other_process(environment, name="dead")
    await leases.ensure_process_registered(dead)  # without a heartbeat
    async with use_database_exclusively(
        make_other_process(environment), make_settings(environment, tmp_path), "repair"
    ):
        assert await load_registered_names(environment) == ["repair"]


async def test_server_is_refused_beside_an_exclusive_command(
    environment: Environment, tmp_path: Path
) -> None:
    async with use_database_exclusively(
        make_other_process(environment), make_settings(environment, tmp_path), "repair"
    ):
        with pytest.raises(CommandError, match="a command that has to repair"):
            async with register_process_beside_servers(
                make_other_process(environment, name="server")
            ):
                raise AssertionError("it must not begin")
    async with register_process_beside_servers(make_other_process(environment, name="server")):
        assert await load_registered_names(environment) == ["server"]


async def test_resumed_server_stops_beside_an_exclusive_command(environment: Environment) -> None:
    server, reserved = make_other_process(environment, name="server"), asyncio.Event()
    server.process.on_reserved = reserved.set
    async with register_process_beside_servers(server):
        await leases.delete_server_registrations_and_free_leases(
            environment, server.process.server_id
        )  # it was suspended for too long
        command = make_other_process(environment, name="command")
        command.process.exclusive_purpose = "repair"
        await leases.ensure_process_registered(command)
        async with asyncio.timeout(HANG_SECONDS):
            await reserved.wait()
        assert await load_registered_names(environment) == ["command"]
        await leases.deregister_process_and_free_leases(command)


async def test_resumed_server_with_old_keys_stops(environment: Environment) -> None:
    server, reserved = make_other_process(environment, name="server"), asyncio.Event()
    server.process.on_reserved = reserved.set
    async with register_process_beside_servers(server):
        key_row = {"name": "later", "proof": "x", "created_at": environment.now()}
        async with environment.write_session() as session:
            await (await session.connection()).execute(insert(core_table(SecretBoxKey)), key_row)
        await leases.delete_server_registrations_and_free_leases(
            environment, server.process.server_id
        )
        async with asyncio.timeout(HANG_SECONDS):
            await reserved.wait()
    assert await load_registered_names(environment) == []


async def test_dead_command_does_not_block_servers(environment: Environment) -> None:
    command = make_other_process(environment, name="command")
    command.process.exclusive_purpose = "repair"
    await leases.ensure_process_registered(command)  # without a heartbeat
    async with register_process_beside_servers(make_other_process(environment, name="server")):
        await wait_until_unregistered(environment, "command")
        assert await load_registered_names(environment) == ["server"]


def test_restart_keeps_the_server_id_and_a_copy_gets_another(tmp_path: Path) -> None:
    folder, copied_folder = tmp_path / "one", tmp_path / "copy"
    folder.mkdir()
    copied_folder.mkdir()
    with hold_server_id(folder) as first_id, hold_server_id(folder) as second_id:
        assert first_id != second_id
    with hold_server_id(folder) as restarted_id:
        assert restarted_id == first_id
    (copied_folder / "server-id").write_bytes((folder / "server-id").read_bytes())
    with hold_server_id(copied_folder) as copied_id:
        assert copied_id != first_id


async def test_changed_environment_keeps_the_registration(environment: Environment) -> None:
    command = make_other_process(environment)
    changed = replace(command, signing_secret=b"t" * 32)
    assert await leases.ensure_process_registered(
        changed
    ) == await leases.ensure_process_registered(command)

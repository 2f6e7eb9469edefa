"""Tests of `merganser keys` and of the key file."""

import asyncio
import json
import os
import sqlite3
from pathlib import Path

import pytest

from merganser.server.environment_factory import open_environment
from merganser.server.store import store_lock
from merganser.settings.settings import read_settings
from models.auth.second_factors import TotpSecret
from models.runtime.secret_box import SecretBox, generate_key
from resolvers.auth.second_factors.totp import secret_box_purpose
from tests.support.clients.command_line import CommandLine, CommandResult, prepare_once
from tests.support.servers.forked_process import run_forked

USER_COUNT = 1203  # more than two batches


def add_totp_secrets(user_count: int = USER_COUNT) -> None:
    """Add users with a TOTP secret. Every third has a pending secret too."""

    async def add_users() -> None:
        async with open_environment(read_settings()) as environment:
            from sqlalchemy import insert

            from models.events.journal import Stream
            from models.store.columns import core_table
            from models.users.tables import User

            def encrypted_secret(user_id: int) -> str:
                return environment.secret_box.encrypt(f"SEED{user_id}", secret_box_purpose(user_id))

            async with environment.write_session() as session:
                user_ids = range(1, user_count + 1)
                now = environment.now()
                session.add_all(Stream(id=user_id) for user_id in user_ids)
                await session.flush()
                user = User(
                    id=0, username="", username_key="", tenant_id=0, created_at=now, updated_at=now
                )
                table = core_table(User)
                columns = {column.name: getattr(user, column.name) for column in table.columns}
                rows = [  # an object for each user would take a second of CPU time
                    {**columns, "id": key, "username": f"u{key}", "username_key": f"u{key}",
                     "tenant_id": key}
                    for key in user_ids
                ]  # fmt: skip
                await (await session.connection()).execute(insert(table), rows)
                session.add_all(
                    TotpSecret(
                        user_id=user_id,
                        seed=encrypted_secret(user_id),
                        pending=None if user_id % 3 else encrypted_secret(user_id),
                    )
                    for user_id in user_ids
                )

    asyncio.run(add_users())


def count_readable_secrets() -> int:
    """Decrypt all TOTP secrets of the database and return their number."""

    async def read_secrets() -> int:
        from sqlalchemy import select

        from models.store.columns import core_table

        async with open_environment(read_settings()) as environment:
            rows = await environment.database.read(select(core_table(TotpSecret)))
            secrets = [
                (
                    environment.secret_box.decrypt(text, secret_box_purpose(row.user_id)),
                    f"SEED{row.user_id}",
                )
                for row in rows
                for text in (row.seed, row.pending)
                if text
            ]
            assert all(decrypted == expected for decrypted, expected in secrets)
            return len(secrets)

    return asyncio.run(read_secrets())


def key_file_path(shell: CommandLine) -> Path:
    return shell.data / "vault"


def key_names(shell: CommandLine) -> list[str]:
    return [line.split()[0] for line in key_file_path(shell).read_text().splitlines()]


@pytest.fixture
def shell_with_secrets(shell: CommandLine, prepared_folder: Path) -> CommandLine:
    prepare_once(shell, prepared_folder / "secrets", add_totp_secrets)
    return shell


SECRET_COUNT = USER_COUNT + USER_COUNT // 3


def test_rotation_encrypts_all_secrets_again_and_removes_old_key(
    shell_with_secrets: CommandLine,
) -> None:
    (old_name,) = key_names(shell_with_secrets)
    old_file_text = key_file_path(shell_with_secrets).read_text()
    result = shell_with_secrets("keys", "rotate")
    assert (result.code, result.err) == (0, "")
    (new_name,) = key_names(shell_with_secrets)
    assert new_name != old_name
    assert f"Key {new_name} is made, and {SECRET_COUNT} secrets" in result.out
    assert f"Removed {old_name}" in result.out
    assert key_file_path(shell_with_secrets).stat().st_mode & 0o777 == 0o600
    assert count_readable_secrets() == SECRET_COUNT
    key_rows = shell_with_secrets("keys", "list", "--json").json
    assert [(row["name"], row["sealed"], row["newest"]) for row in key_rows] == [
        (new_name, SECRET_COUNT, True)
    ]
    for output in (result.out, shell_with_secrets("keys", "list").out):
        assert old_file_text.split()[1] not in output
        assert key_file_path(shell_with_secrets).read_text().split()[1] not in output


def test_rotation_can_keep_old_key(shell_with_secrets: CommandLine) -> None:
    (old_name,) = key_names(shell_with_secrets)
    assert shell_with_secrets("keys", "rotate", "--keep-old").code == 0
    assert key_names(shell_with_secrets)[0] == old_name
    assert len(key_names(shell_with_secrets)) == 2
    rows = shell_with_secrets("keys", "list", "--json").json
    assert [row["sealed"] for row in rows] == [0, SECRET_COUNT]
    assert shell_with_secrets("keys", "rotate").code == 0
    assert len(key_names(shell_with_secrets)) == 1
    assert count_readable_secrets() == SECRET_COUNT


FAULT_POINTS = ["rotation:1", "rotation:2", "reseal:1", "reseal:2", "reseal:3", "rotation:3"]


@pytest.mark.parametrize("fault_point", FAULT_POINTS)
def test_killed_rotation_loses_nothing_and_continues(
    shell_with_secrets: CommandLine, fault_point: str
) -> None:
    env = {**os.environ, "MERGANSER_FAULT": fault_point}
    killed = run_forked(["keys", "rotate"], env)
    assert killed.returncode == -9, killed.stderr
    assert count_readable_secrets() == SECRET_COUNT
    result = shell_with_secrets("keys", "rotate")
    assert result.code == 0, result.err
    assert len(key_names(shell_with_secrets)) == 1
    assert count_readable_secrets() == SECRET_COUNT


async def test_rotation_is_refused_while_server_runs(shell_with_secrets: CommandLine) -> None:
    old_file_text = key_file_path(shell_with_secrets).read_text()
    async with store_lock.lock_as_server(read_settings().database_url):
        result = await asyncio.to_thread(shell_with_secrets, "keys", "rotate")
    assert result.code == 1
    assert "stop it, then rotate the keys." in result.err
    assert key_file_path(shell_with_secrets).read_text() == old_file_text


def test_unreadable_secret_is_reported_and_its_key_is_kept(shell_with_secrets: CommandLine) -> None:
    (old_name,) = key_names(shell_with_secrets)
    with sqlite3.connect(shell_with_secrets.data / "mail.db") as connection:
        connection.execute(
            "UPDATE totp_secrets SET seed = ? || '.AAAA' WHERE user_id = 7", (old_name,)
        )
    connection.close()
    result = shell_with_secrets("keys", "rotate")
    assert result.code == 1
    assert "No key opens totp:7" in result.err
    assert key_names(shell_with_secrets)[0] == old_name
    assert len(key_names(shell_with_secrets)) == 2


def list_users(shell: CommandLine) -> CommandResult:
    """Run a command that opens the database. It prints only few users."""
    return shell("user", "list", "--query", "u1200")


def test_commands_fail_without_key_file(shell_with_secrets: CommandLine) -> None:
    key_file_path(shell_with_secrets).unlink()
    result = list_users(shell_with_secrets)
    assert result.code == 1
    assert f"The key file {key_file_path(shell_with_secrets)} is missing" in result.err
    assert not key_file_path(shell_with_secrets).exists()
    assert "key file" in failed_key_file_checks(shell_with_secrets)


def test_commands_fail_with_other_key_file(shell_with_secrets: CommandLine) -> None:
    (old_name,) = key_names(shell_with_secrets)
    name, key = generate_key()
    for text in (f"{name} {key.hex()}\n", f"{old_name} {key.hex()}\n"):
        key_file_path(shell_with_secrets).write_text(text)
        result = list_users(shell_with_secrets)
        assert result.code == 1
        assert f"does not have the key {old_name} that the database requires" in result.err
        assert old_name in failed_key_file_checks(shell_with_secrets)["key file"]


@pytest.mark.parametrize("text", ["", "x", "name key\n", "name " + "00" * 31, "\xff\xfe"])
def test_key_file_without_keys_is_reported(shell_with_secrets: CommandLine, text: str) -> None:
    key_file_path(shell_with_secrets).write_text(text)
    result = list_users(shell_with_secrets)
    assert result.code == 1
    assert "restore the right file." in result.err
    assert "key file" in failed_key_file_checks(shell_with_secrets)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_key_file_readable_by_others_is_refused(shell_with_secrets: CommandLine, mode: int) -> None:
    key_file_path(shell_with_secrets).chmod(mode)
    result = list_users(shell_with_secrets)
    assert result.code == 1
    assert f"chmod 600 {key_file_path(shell_with_secrets)}" in result.err
    assert "Other users can read" in failed_key_file_checks(shell_with_secrets)["key file"]
    key_file_path(shell_with_secrets).chmod(0o600)
    assert list_users(shell_with_secrets).code == 0
    assert failed_key_file_checks(shell_with_secrets) == {}


def failed_key_file_checks(shell: CommandLine) -> dict[str, str]:
    """Return the checks of the key file that `merganser doctor` reports as failed."""
    rows = json.loads(shell("doctor", "--json").out)
    return {
        row["subject"]: row["found"]
        for row in rows
        if row["subject"] == "key file" and row["verdict"] == "action"
    }


def test_key_file_path_can_be_set(shell: CommandLine, tmp_path: Path) -> None:
    shell.set_settings(encryption_keys_file=str(tmp_path / "keys"))
    assert list_users(shell).code == 0
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    assert not key_file_path(shell).exists()
    assert shell("keys", "rotate").code == 0


def test_two_processes_starting_together_share_one_key_file(shell: CommandLine) -> None:
    async def newest_key_names() -> set[str]:
        async with (
            open_environment(read_settings()) as first_environment,
            open_environment(read_settings()) as second_environment,
        ):
            return {
                first_environment.secret_box.newest_key_name,
                second_environment.secret_box.newest_key_name,
            }

    assert asyncio.run(newest_key_names()) == set(key_names(shell))


def test_rotation_stops_if_key_file_cannot_be_written(
    shell_with_secrets: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merganser.server import key_file

    def refuse_write(_path: Path, _text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(key_file, "replace_private_file", refuse_write)
    result = shell_with_secrets("keys", "rotate")
    assert result.code == 1
    assert "Cannot write" in result.err
    assert count_readable_secrets() == SECRET_COUNT


def test_secret_box_repr_and_fingerprint_hide_key() -> None:
    name, key = generate_key()
    secret_box = SecretBox({name: key})
    assert key.hex() not in repr(secret_box)
    assert str(key) not in repr(secret_box)
    assert key.hex() not in secret_box.key_fingerprint(name)

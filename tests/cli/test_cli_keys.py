"""`merganser keys`, and the file of keys."""

import asyncio
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from merganser.server.environment_factory import open_environment
from merganser.server.store import store_lock
from merganser.settings.settings import read_settings
from models.auth.second_factors import TotpSecret
from models.runtime.secret_box import SecretBox, generate_key
from resolvers.auth.second_factors.totp import secret_box_purpose
from tests.support.clients.command_line import CommandLine, CommandResult
from tests.support.servers.forked_process import run_forked

SEEDS = 1203  # more than two rounds


def sealed(many: int = SEEDS) -> None:
    """So many accounts with a seed, and every third with one that waits."""

    async def furnish() -> None:
        async with open_environment(read_settings()) as world:
            from models.events.journal import Stream
            from models.users.tables import User

            def text(key: int) -> str:
                return world.secret_box.encrypt(f"SEED{key}", secret_box_purpose(key))

            async with world.write_session() as session:
                keys = range(1, many + 1)
                now = world.now()
                session.add_all(Stream(id=key) for key in keys)
                session.add_all(
                    User(
                        id=key,
                        username=f"u{key}",
                        username_key=f"u{key}",
                        tenant_id=key,
                        created_at=now,
                        updated_at=now,
                    )
                    for key in keys
                )
                await session.flush()
                session.add_all(
                    TotpSecret(user_id=key, seed=text(key), pending=None if key % 3 else text(key))
                    for key in keys
                )

    asyncio.run(furnish())


def opens() -> int:
    """How many texts of the store can be opened, and are the right ones."""

    async def count() -> int:
        from sqlalchemy import select

        from models.store.columns import core_table

        async with open_environment(read_settings()) as world:
            rows = await world.database.read(select(core_table(TotpSecret)))
            texts = [
                (
                    world.secret_box.decrypt(text, secret_box_purpose(row.user_id)),
                    f"SEED{row.user_id}",
                )
                for row in rows
                for text in (row.seed, row.pending)
                if text
            ]
            assert all(found == right for found, right in texts)
            return len(texts)

    return asyncio.run(count())


def file_of(shell: CommandLine) -> Path:
    return shell.data / "vault"


def names(shell: CommandLine) -> list[str]:
    return [line.split()[0] for line in file_of(shell).read_text().splitlines()]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store and the keys of the first are kept, to be copied for the others."""
    return tmp_path_factory.mktemp("sample") / "var"


@pytest.fixture
def furnished(shell: CommandLine, sample: Path) -> CommandLine:
    if sample.exists():
        shutil.copytree(sample, shell.data, dirs_exist_ok=True)
    else:
        sealed()
        shutil.copytree(shell.data, sample)
    return shell


ALL = SEEDS + SEEDS // 3


def test_all_is_sealed_anew_and_old_keys_go(furnished: CommandLine) -> None:
    (old,) = names(furnished)
    before = file_of(furnished).read_text()
    said = furnished("keys", "rotate")
    assert (said.code, said.err) == (0, "")
    (new,) = names(furnished)
    assert new != old
    assert f"Key {new} is made, and {ALL} secrets" in said.out
    assert f"Removed {old}" in said.out
    assert file_of(furnished).stat().st_mode & 0o777 == 0o600
    assert opens() == ALL
    listed = furnished("keys", "list", "--json").json
    assert [(row["name"], row["sealed"], row["newest"]) for row in listed] == [(new, ALL, True)]
    for shown in (said.out, furnished("keys", "list").out):
        assert before.split()[1] not in shown
        assert file_of(furnished).read_text().split()[1] not in shown


def test_old_keys_may_stay(furnished: CommandLine) -> None:
    (old,) = names(furnished)
    assert furnished("keys", "rotate", "--keep-old").code == 0
    assert names(furnished)[0] == old
    assert len(names(furnished)) == 2
    rows = furnished("keys", "list", "--json").json
    assert [row["sealed"] for row in rows] == [0, ALL]
    assert furnished("keys", "rotate").code == 0
    assert len(names(furnished)) == 1
    assert opens() == ALL


PLACES = ["rotation:1", "rotation:2", "reseal:1", "reseal:2", "reseal:3", "rotation:3"]


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_any_point_it_loses_nothing_and_goes_on(
    furnished: CommandLine, place: str
) -> None:
    env = {**os.environ, "MERGANSER_FAULT": place}
    killed = run_forked(["keys", "rotate"], env)
    assert killed.returncode == -9, killed.stderr
    assert opens() == ALL
    said = furnished("keys", "rotate")
    assert said.code == 0, said.err
    assert len(names(furnished)) == 1
    assert opens() == ALL


async def test_it_needs_the_servers_stopped(furnished: CommandLine) -> None:
    before = file_of(furnished).read_text()
    async with store_lock.lock_as_server(read_settings().store):
        said = await asyncio.to_thread(furnished, "keys", "rotate")
    assert said.code == 1
    assert "stop it, then make other keys" in said.err
    assert file_of(furnished).read_text() == before


def test_what_no_key_opens_keeps_its_key_and_is_told_of(furnished: CommandLine) -> None:
    (old,) = names(furnished)
    with sqlite3.connect(furnished.data / "mail.db") as store:
        store.execute("UPDATE totp_seeds SET seed = ? || '.AAAA' WHERE user_id = 7", (old,))
    store.close()
    said = furnished("keys", "rotate")
    assert said.code == 1
    assert "No key opens totp:7" in said.err
    assert names(furnished)[0] == old
    assert len(names(furnished)) == 2


def starts(shell: CommandLine) -> CommandResult:
    return shell("user", "list")


def test_without_the_file_nothing_starts(furnished: CommandLine) -> None:
    file_of(furnished).unlink()
    said = starts(furnished)
    assert said.code == 1
    assert f"the key file {file_of(furnished)} is missing" in said.err
    assert not file_of(furnished).exists()
    assert "vault" in doctor(furnished)


def test_with_another_file_nothing_starts(furnished: CommandLine) -> None:
    (old,) = names(furnished)
    name, key = generate_key()
    for text in (f"{name} {key.hex()}\n", f"{old} {key.hex()}\n"):
        file_of(furnished).write_text(text)
        said = starts(furnished)
        assert said.code == 1
        assert f"has not the key {old} that the store needs" in said.err
        assert old in doctor(furnished)["vault"]


@pytest.mark.parametrize("text", ["", "x", "name key\n", "name " + "00" * 31, "\xff\xfe"])
def test_a_file_without_keys_is_said_to_be_none(furnished: CommandLine, text: str) -> None:
    file_of(furnished).write_text(text)
    said = starts(furnished)
    assert said.code == 1
    assert "bring back the right file" in said.err
    assert "vault" in doctor(furnished)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_others_may_not_read_it(furnished: CommandLine, mode: int) -> None:
    file_of(furnished).chmod(mode)
    said = starts(furnished)
    assert said.code == 1
    assert f"chmod 600 {file_of(furnished)}" in said.err
    assert "others may" in doctor(furnished)["vault"]
    file_of(furnished).chmod(0o600)
    assert starts(furnished).code == 0
    assert doctor(furnished) == {}


def doctor(shell: CommandLine) -> dict[str, str]:
    """What is to be done about the vault."""
    rows = json.loads(shell("doctor", "--json").out)
    return {
        row["subject"]: row["found"]
        for row in rows
        if row["subject"] == "vault" and row["verdict"] == "action"
    }


def test_the_file_may_lie_elsewhere(shell: CommandLine, tmp_path: Path) -> None:
    shell.set_settings(vault=str(tmp_path / "keys"))
    assert starts(shell).code == 0
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
    assert not file_of(shell).exists()
    assert shell("keys", "rotate").code == 0


def test_two_that_start_at_once_have_one_file(shell: CommandLine) -> None:
    async def both() -> set[str]:
        async with (
            open_environment(read_settings()) as one,
            open_environment(read_settings()) as two,
        ):
            return {one.secret_box.newest_key_name, two.secret_box.newest_key_name}

    assert asyncio.run(both()) == set(names(shell))


def test_a_file_that_cannot_be_written_stops_the_rotation(
    furnished: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merganser.server import key_file

    def refused(_path: Path, _text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(key_file, "replace_private_file", refused)
    said = furnished("keys", "rotate")
    assert said.code == 1
    assert "cannot write" in said.err
    assert opens() == ALL


def test_a_key_tells_itself_to_nobody() -> None:
    name, key = generate_key()
    made = SecretBox({name: key})
    assert key.hex() not in repr(made)
    assert str(key) not in repr(made)
    assert key.hex() not in made.key_fingerprint(name)

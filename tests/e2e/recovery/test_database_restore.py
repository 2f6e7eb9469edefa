"""Restores of SQLite: cursors, UIDs and links of the lost history become invalid."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.events.incarnation import MARK_OBJECT_NAME
from tests.support.clients.page_commands import block_texts
from tests.support.servers.forked_program import forked_program
from tests.support.servers.merganser_server import ROOT, MerganserProcess
from tests.support.stores import store_fixtures
from tests.support.stores.restored_clients import (
    ClientState,
    assert_clients_can_continue,
    assert_clients_must_resync,
    deliver,
    read_state,
    run_backup_and_changes,
    wait_for_incarnation_mark,
)


@pytest.fixture
def sqlite_server(prepared_server: MerganserProcess, tmp_path: Path) -> Iterator[MerganserProcess]:
    """A started SQLite server with one user."""
    shutil.copytree(prepared_server.folder, tmp_path, dirs_exist_ok=True)
    server = MerganserProcess(tmp_path, secrets=prepared_server.secrets)
    server.start()
    yield server
    with contextlib.suppress(AssertionError):
        server.kill()


def data_folder(sqlite_server: MerganserProcess) -> Path:
    return sqlite_server.folder / "var"


def remove_database(sqlite_server: MerganserProcess) -> None:
    for path in data_folder(sqlite_server).glob("merganser.db*"):
        path.unlink()


def check_restore_is_detected(
    server: MerganserProcess, copy: Path, end_method: str, prefix: str
) -> None:
    """Restore the database of a running server from a backup in `copy`, and start it again.

    The subjects of messages begin with the prefix.
    """

    def backup() -> None:
        copy.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(data_folder(server) / "merganser.db")) as database:
            database.execute("VACUUM INTO ?", (str(copy),))

    async def run_history() -> tuple[ClientState, ClientState]:
        client_state = await run_backup_and_changes(server, backup, prefix=prefix)
        if end_method == "kill":
            await wait_for_incarnation_mark(server)
        return client_state

    before, after = store_fixtures.run_in_new_loop(run_history())
    getattr(server, end_method)()
    remove_database(server)
    shutil.copy(copy, data_folder(server) / "merganser.db")
    server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(server, before, after, prefix=prefix))


def test_documented_restore_is_detected_by_one_process_and_by_several(
    sqlite_server: MerganserProcess, tmp_path: Path
) -> None:
    """The same server is restored several times."""
    backup = tmp_path / "backup.db"
    check_restore_is_detected(sqlite_server, backup, "stop", "stopped ")
    check_restore_is_detected(sqlite_server, backup, "kill", "killed ")
    sqlite_server.stop()
    check = sqlite_server.run_command("check")
    assert check.exit_code == 0, check.stdout
    sqlite_server.serve_arguments = ("--workers", "2")
    sqlite_server.start()
    check_restore_is_detected(sqlite_server, backup, "stop", "with workers ")


def test_restored_database_file_is_detected(
    sqlite_server: MerganserProcess, tmp_path: Path
) -> None:
    async def deliver_and_read_state() -> ClientState:
        await deliver(sqlite_server, "one", "two")
        async with sqlite_server.open_client("ada") as client:
            return await read_state(client)

    before = store_fixtures.run_in_new_loop(deliver_and_read_state())
    sqlite_server.stop()
    shutil.copy(data_folder(sqlite_server) / "merganser.db", tmp_path / "copy.db")
    sqlite_server.start()

    async def deliver_lost_messages() -> ClientState:
        await deliver(sqlite_server, "lost 1", "lost 2")
        async with sqlite_server.open_client("ada") as client:
            return await read_state(client)

    after = store_fixtures.run_in_new_loop(deliver_lost_messages())
    sqlite_server.stop()
    remove_database(sqlite_server)
    shutil.copy(tmp_path / "copy.db", data_folder(sqlite_server) / "merganser.db")
    sqlite_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(sqlite_server, before, after))


def test_restarts_keep_incarnation_and_missing_mark_begins_new_one(
    sqlite_server: MerganserProcess,
) -> None:
    async def read_current_state() -> ClientState:
        async with sqlite_server.open_client("ada") as client:
            return await read_state(client)

    store_fixtures.run_in_new_loop(deliver(sqlite_server, "one"))
    for end_method in ("stop", "kill"):
        client_state = store_fixtures.run_in_new_loop(read_current_state())
        getattr(sqlite_server, end_method)()
        sqlite_server.start()
        store_fixtures.run_in_new_loop(
            assert_clients_can_continue(
                sqlite_server, client_state, subject=f"after the {end_method}"
            )
        )
    client_state = store_fixtures.run_in_new_loop(read_current_state())
    sqlite_server.stop()
    (data_folder(sqlite_server) / "blobs" / MARK_OBJECT_NAME).unlink()
    sqlite_server.start()
    store_fixtures.run_in_new_loop(
        assert_clients_must_resync(sqlite_server, client_state, client_state)
    )


def test_complete_restore_is_announced_by_command(
    sqlite_server: MerganserProcess, tmp_path: Path
) -> None:
    async def deliver_and_read_state(*subjects: str) -> ClientState:
        await deliver(sqlite_server, *subjects)
        async with sqlite_server.open_client("ada") as client:
            return await read_state(client)

    before = store_fixtures.run_in_new_loop(deliver_and_read_state("one"))
    sqlite_server.stop()
    shutil.copytree(data_folder(sqlite_server), tmp_path / "copy")
    sqlite_server.start()
    after = store_fixtures.run_in_new_loop(deliver_and_read_state("lost 1", "lost 2"))
    refused_check = sqlite_server.run_command("check", "--restored", "--quick")
    assert refused_check.exit_code != 0
    assert "stop" in refused_check.stderr
    sqlite_server.stop()
    shutil.rmtree(data_folder(sqlite_server))
    shutil.copytree(tmp_path / "copy", data_folder(sqlite_server))
    check = sqlite_server.run_command("check", "--restored", "--quick")
    assert check.exit_code == 0, check.stdout + check.stderr
    sqlite_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(sqlite_server, before, after))


def documented_commands(kind: str) -> str:
    """Return the commands of a block in docs/operating/backup.md."""
    (commands,) = block_texts(ROOT / "docs" / "operating" / "backup.md", f"sh {kind}")
    return commands


def run_documented_commands(kind: str, server: MerganserProcess) -> None:
    """Run these commands as printed, beside the data folder.

    The umask is that of `tests/support/process_umask.py`, with which others can read new files.
    """
    bin_folder = server.folder / f"bin_{kind}"
    bin_folder.mkdir()
    env = {**server.process_env, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    with forked_program(bin_folder / "merganser"):
        process = subprocess.run(
            ["/bin/sh", "-eu", "-c", documented_commands(kind)],
            cwd=server.folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    assert process.returncode == 0, process.stdout + process.stderr


def readable_by_others(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]


def test_documented_backup_is_private_and_restores_a_new_machine(
    sqlite_server: MerganserProcess,
) -> None:
    folder = sqlite_server.folder

    def backup() -> None:
        first = sqlite_server.run_command("backup", folder / "backup", "--keys", folder / "keys")
        assert first.exit_code == 0, first.stdout + first.stderr
        run_documented_commands("backup", sqlite_server)  # the second backup replaces the first

    store_fixtures.run_in_new_loop(deliver(sqlite_server, "old"))
    before, after = store_fixtures.run_in_new_loop(run_backup_and_changes(sqlite_server, backup))
    sqlite_server.stop()
    copies = [folder / name for name in ("backup", "keys")]
    assert [readable_by_others(copy) for copy in copies] == [[], []]
    shutil.rmtree(data_folder(sqlite_server))
    run_documented_commands("restore", sqlite_server)
    assert readable_by_others(data_folder(sqlite_server)) == []
    sqlite_server.start()
    store_fixtures.run_in_new_loop(assert_clients_must_resync(sqlite_server, before, after))
    sqlite_server.stop()
    check = sqlite_server.run_command("check")
    assert check.exit_code == 0, check.stdout

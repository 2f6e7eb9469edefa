"""The command line itself: help, failures, the store, its locks and what the doctor says."""

import asyncio
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merganser.errors import CommandError
from merganser.server.environment_factory import fault_point_killer, load_or_create_secret
from merganser.server.private_files import create_private_file
from merganser.server.sockets import exposed_settings
from merganser.server.store import store_lock
from merganser.settings.settings import Settings, read_settings
from tests.support.clients.command_line import CommandLine

ROOT = Path(__file__).parents[2]


HEAVY = ("graph.schema", "strawberry", "sqlalchemy", "pydantic", "dns")


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("--help", ""),
        ("settings", "pydantic"),
        ("send-test --to ada@example.org", "pydantic"),
        ("init", "pydantic sqlalchemy"),
        ("doctor", "pydantic sqlalchemy dns"),
        ("user list", "pydantic sqlalchemy"),
        ("token list", "pydantic sqlalchemy"),
        ("setting list", "pydantic sqlalchemy"),
        ("check", "pydantic sqlalchemy dns"),
    ],
)
def test_a_command_loads_only_what_it_needs(tmp_path: Path, words: str, allowed: str) -> None:
    """The schema takes seconds to load: only commands that answer requests need it."""
    watched = f"import sys; sys.argv[1:] = {words.split()}\nfrom merganser.__main__ import main\n"
    loaded = f"main()\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    env = {**os.environ, "MERGANSER_DATA": str(tmp_path / "data"), "MERGANSER_LMTP": "127.0.0.1:1"}
    said = subprocess.run(
        [sys.executable, "-c", watched + loaded],
        cwd=ROOT, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(said.stdout.splitlines()[-1].split()) <= set(allowed.split())


@pytest.mark.parametrize(
    "words", [(), ("user",), ("token",), ("domain",), ("connector",), ("documents",)]
)
def test_without_a_command_it_helps(bare: CommandLine, words: tuple[str, ...]) -> None:
    said = bare(*words)
    assert said.code == 2
    assert "Usage" in said.out
    assert said.err == ""


@pytest.mark.parametrize("words", [("nonsense",), ("user", "add"), ("serve", "--fast")])
def test_a_wrong_command_line_is_one_sentence(bare: CommandLine, words: tuple[str, ...]) -> None:
    said = bare(*words)
    assert said.code == 2
    assert said.err.startswith("merganser: ")
    assert said.err.count("\n") == 1


def test_the_schema_and_the_settings_are_printed(bare: CommandLine) -> None:
    assert "type Query" in bare("schema").out
    assert bare("settings").out == (ROOT / "docs" / "settings.md").read_text()


def test_init_makes_a_store_that_nobody_else_can_read(bare: CommandLine) -> None:
    assert bare("init").code == 0
    assert bare("init").code == 0
    bare.set_settings(data="/proc/nothing")
    assert "cannot make the folder /proc/nothing" in bare("init").err
    bare.set_settings(data=str(bare.data))
    for made in (bare.data, bare.data / "secret", bare.data / "merganser.db"):
        assert not stat.S_IMODE(made.stat().st_mode) & 0o077, made


@pytest.mark.parametrize(
    "words",
    [("user", "list"), ("connector", "list"), ("documents", "list"), ("check",)],
)
def test_a_store_that_is_not_ready_says_what_to_do(
    bare: CommandLine, words: tuple[str, ...]
) -> None:
    said = bare(*words)
    assert said.code == 1
    assert said.err == "merganser: the store is not ready: run `merganser init` first\n"
    assert not bare.data.exists()


def test_a_store_of_a_newer_version_is_left_alone(shell: CommandLine) -> None:
    import sqlite3

    with sqlite3.connect(shell.data / "mail.db") as store:
        store.execute("UPDATE alembic_version SET version_num = 'v9999'")
    store.close()
    for words in (("init",), ("user", "list")):
        said = shell(*words)
        assert said.code == 1
        assert "made by a newer merganser (v9999)" in said.err


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("store", "postgresql://mail:hunter2@127.0.0.1:1/mail", "cannot use the store"),
        ("store", "postgresql://host:port/x", "a host or port in the address can't be read"),
        ("store", "sqlite://", "name a file"),
        ("blobs", "nosuch://bucket", "MERGANSER_BLOBS cannot be used"),
        ("blobs", "s3://b?timeout=abc", "MERGANSER_BLOBS cannot be used: the option 'timeout'"),
        ("blobs", "s3://b?region=x&allow_http=maybe", "the option 'allow_http' is wrong"),
        ("blobs", "s3://b?virtual_hosted_style_request=no!", "'virtual_hosted_style_request'"),
        ("blobs", "s3://b?endpoint=http://x&nosuch=1", "the option 'nosuch' is wrong"),
        ("hhtp", "x", "did you mean MERGANSER_HTTP"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(
    shell: CommandLine, setting: str, value: str, words: str
) -> None:
    shell.set_settings(**{setting: value})
    said = shell("user", "list")
    assert said.code in (1, 2)
    assert said.err.startswith("merganser: ")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert "hunter2" not in said.err


def test_a_file_that_is_no_store_is_one_sentence(bare: CommandLine) -> None:
    bare.data.mkdir()
    (bare.data / "merganser.db").write_bytes(b"not a database at all" * 100)
    said = bare("user", "list")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "file is not a database" in said.err


def test_a_secret_is_made_once_whoever_comes_first(bare: CommandLine) -> None:
    bare.data.mkdir()
    first = load_or_create_secret(read_settings())
    create_private_file(bare.data / "secret", "ff" * 32)
    assert load_or_create_secret(read_settings()) == first
    assert len(first) == 32
    assert [each.name for each in bare.data.iterdir()] == ["secret"]


@pytest.mark.usefixtures("shell")
async def test_a_store_is_served_or_repaired_but_never_both() -> None:
    store = read_settings().store
    assert store_lock.sqlite_server_pid(store) is None
    async with store_lock.lock_as_server(store):
        assert store_lock.sqlite_server_pid(store) == str(os.getpid())
        with pytest.raises(CommandError, match=rf"another merganser.*\(pid {os.getpid()}\)"):
            async with store_lock.lock_as_server(store):
                pass
        with pytest.raises(CommandError, match=r"serves this store \(pid \d+\): stop it"):
            async with store_lock.lock_for_repair(store):
                pass
    async with store_lock.lock_for_repair(store):
        pass


async def test_servers_share_a_postgres_store_but_not_with_a_repair(postgres: str) -> None:
    async with store_lock.lock_as_server(postgres), store_lock.lock_as_server(postgres):
        with pytest.raises(CommandError, match="stop all of them"):
            async with store_lock.lock_for_repair(postgres):
                pass
    async with store_lock.lock_for_repair(postgres):
        with pytest.raises(CommandError, match="is being repaired"):
            async with store_lock.lock_as_server(postgres):
                pass


async def test_check_refuses_to_repair_beside_a_server(shell: CommandLine) -> None:
    async with store_lock.lock_as_server(read_settings().store):
        said = await asyncio.to_thread(shell, "check", "--repair")
    assert said.code == 1
    assert "stop it, then repair" in said.err


def test_check_finds_a_difference_and_repairs_it(ada: CommandLine) -> None:
    import sqlite3

    ada("check", "--repair")  # whatever else there is
    with sqlite3.connect(ada.data / "mail.db") as store:
        store.execute("UPDATE mailboxes SET total = 7 WHERE path = 'INBOX'")
    store.close()
    said = ada("check", "--quick")
    assert said.code == 1
    assert [(f["rule"], f["found"]) for f in said.json["findings"]] == [("total", 7)]
    assert ada("check", "--repair").code == 0
    assert ada("check").json["whole"] is True


@pytest.mark.parametrize(
    ("place", "open_to_others"),
    [
        ("127.0.0.1:1", False),
        ("127.9.9.9:1", False),
        ("[::1]:1", False),
        ("localhost:1", False),
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("192.0.2.1:1", True),
    ],
)
def test_who_can_reach_us_is_known(place: str, *, open_to_others: bool) -> None:
    assert exposed_settings(Settings(http=place)) == (["HTTP"] if open_to_others else [])
    assert exposed_settings(Settings(lmtp=place)) == (["LMTP"] if open_to_others else [])


def test_the_doctor_finds_a_new_installation_fit(shell: CommandLine) -> None:
    shell.set_settings(http="127.0.0.1:0", lmtp="127.0.0.1:0")
    shell("user", "list")
    said = shell("doctor", "--json")
    assert said.code == 0
    verdicts = {row["subject"]: row["verdict"] for row in said.json}
    assert {verdicts[name] for name in ("store", "blobs", "secret", "disk", "HTTP port")} == {"ok"}


def test_the_doctor_says_what_to_do(shell: CommandLine) -> None:
    import socket

    shell("user", "list")
    (shell.data / "secret").chmod(0o644)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        shell.set_settings(
            http=f"127.0.0.1:{port}", lmtp="127.0.0.1:0", store="postgresql://127.0.0.1:1/x"
        )
        said = shell("doctor")
    assert said.code == 1
    for words in (f"chmod 600 {shell.data}/secret", "MERGANSER_HTTP", "MERGANSER_STORE"):
        assert words in said.out


def test_a_fault_ends_the_process_at_its_passing() -> None:
    code = (
        "from merganser.server.environment_factory import fault_point_killer\np = "
        "fault_point_killer('commit:3')\n"
    )
    code += "for n in range(9):\n    p('other'); p('commit'); print(n, flush=True)\n"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == -9
    assert ended.stdout == b"0\n1\n"
    fault_point_killer(None)("commit")


def test_no_server_to_send_a_test_to_is_one_sentence(bare: CommandLine) -> None:
    bare.set_settings(lmtp="127.0.0.1:1")
    began = time.monotonic()
    said = bare("send-test", "--to", "ada@example.org")
    assert time.monotonic() - began < 10
    assert said.code == 1
    assert "no LMTP server answers at 127.0.0.1:1" in said.err
    assert "say with --to" in bare("send-test").err

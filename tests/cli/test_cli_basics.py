"""Tests of the command line: help, errors, the database and its locks, and `merganser doctor`."""

import ast
import asyncio
import inspect
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import get_type_hints

import pytest
from typer.core import TyperCommand

from merganser.commands.lazy_commands import LazyImplementation
from merganser.doctor.findings import CheckName
from merganser.errors import CommandError
from merganser.server.environment_factory import fault_point_killer, load_or_create_signing_secret
from merganser.server.private_files import create_private_file_if_missing
from merganser.server.sockets import exposed_listener_names
from merganser.server.store import store_lock
from merganser.settings.settings import Settings, read_settings
from tests.support.clients.command_line import CommandLine, all_commands
from tests.support.time_limits import HANG_SECONDS

ROOT = Path(__file__).parents[2]


SLOW_MODULES = ("graph.schema", "strawberry", "sqlalchemy", "pydantic", "dns")
# Commands by the slow modules that they may import. Each group may import more than the one before.
COMMANDS_BY_ALLOWED_MODULES = {
    "": ("--help",),
    "pydantic": (  # typer imports it to parse options
        "user add --help",
        "domain dkim-add --help",
        "documents add --help",
        "doctor --help",
        "settings",
        "send-test --to ada@example.org",
    ),
    "pydantic sqlalchemy": ("init", "user list", "api-key list", "setting list"),
    "pydantic sqlalchemy dns": ("doctor", "check"),
}
RUN_COMMANDS = """
import json, sys
from merganser.__main__ import main

for command in json.loads(sys.argv[1]):
    sys.argv[1:] = command.split()
    main()
    print("IMPORTED", *(name for name in {names} if name in sys.modules))
"""


def test_command_imports_only_needed_modules(tmp_path: Path) -> None:
    """The schema takes seconds to load. Only commands that answer requests need it.

    One process runs all commands, so the modules of a command stay for those after it.
    """
    commands = [
        (command, allowed)
        for allowed, group in COMMANDS_BY_ALLOWED_MODULES.items()
        for command in group
    ]
    env = {
        **os.environ,
        "MERGANSER_DATA": str(tmp_path / "data"),
        "MERGANSER_LMTP_LISTEN": "127.0.0.1:1",
    }
    script = RUN_COMMANDS.format(names=SLOW_MODULES)
    result = subprocess.run(
        [sys.executable, "-c", script, json.dumps([command for command, _ in commands])],
        cwd=ROOT, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("IMPORTED")]
    for (command, allowed), (_, *names) in zip(commands, lines, strict=True):
        assert set(names) <= set(allowed.split()), command


def test_import_of_app_loads_no_rarely_used_module() -> None:
    # cryptography imports bcrypt, so bcrypt is not in the list
    names = ("passlib", "pysequoia", "scim2_models")
    code = f"import sys, graph.app; print([name for name in {names} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "command"), all_commands().items(), ids=all_commands())
def test_declared_command_has_an_implementation(name: str, command: TyperCommand) -> None:
    assert command.callback
    implementation = inspect.unwrap(
        command.callback, stop=lambda function: isinstance(function, LazyImplementation)
    )
    assert isinstance(implementation, LazyImplementation), name
    declared = get_type_hints(inspect.unwrap(implementation))
    assert list(get_type_hints(implementation.load()).items()) == list(declared.items())


def test_import_inside_command_function_has_a_reason() -> None:
    without_reason = []
    for path in (ROOT / "merganser" / "commands").rglob("*.py"):
        text = path.read_text()
        lines = text.splitlines()
        for function in ast.walk(ast.parse(text)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    comments = (lines[node.lineno - 2].strip(), lines[node.lineno - 1])
                    if not (comments[0].startswith("#") or " - " in comments[1].partition("#")[2]):
                        without_reason.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert without_reason == []


@pytest.mark.parametrize(
    "arguments", [(), ("user",), ("api-key",), ("domain",), ("connector",), ("documents",)]
)
def test_missing_subcommand_shows_help(
    shell_without_store: CommandLine, arguments: tuple[str, ...]
) -> None:
    result = shell_without_store(*arguments)
    assert result.code == 2
    assert "Usage" in result.out
    assert result.err == ""


def test_help_joins_wrapped_lines_of_paragraphs(shell_without_store: CommandLine) -> None:
    assert "The exit code is 1 if a" in shell_without_store("check", "--help").out
    assert "can be changed while a server" in shell_without_store("--help").out


@pytest.mark.parametrize("arguments", [("nonsense",), ("user", "add"), ("serve", "--fast")])
def test_invalid_command_line_is_reported_in_one_line(
    shell_without_store: CommandLine, arguments: tuple[str, ...]
) -> None:
    result = shell_without_store(*arguments)
    assert result.code == 2
    assert result.err.startswith("merganser: ")
    assert result.err.count("\n") == 1


def test_schema_and_settings_are_printed(shell_without_store: CommandLine) -> None:
    assert "type Query" in shell_without_store("schema").out
    assert shell_without_store("settings").out == (ROOT / "docs" / "settings.md").read_text()


def test_init_creates_database_readable_only_by_owner(shell_without_store: CommandLine) -> None:
    assert shell_without_store("init").code == 0
    assert shell_without_store("init").code == 0
    shell_without_store.set_settings(data="/proc/nothing")
    assert "Cannot create the folder /proc/nothing" in shell_without_store("init").err
    shell_without_store.set_settings(data=str(shell_without_store.data))
    for path in (
        shell_without_store.data,
        shell_without_store.data / "secret",
        shell_without_store.data / "merganser.db",
    ):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@pytest.mark.parametrize(
    "arguments",
    [("user", "list"), ("connector", "list"), ("documents", "list"), ("check",)],
)
def test_command_without_database_names_init(
    shell_without_store: CommandLine, arguments: tuple[str, ...]
) -> None:
    result = shell_without_store(*arguments)
    assert result.code == 1
    assert result.err == "merganser: The database is not ready: run `merganser init` first.\n"
    assert not shell_without_store.data.exists()


@pytest.mark.parametrize(
    ("revision", "error_text"),
    [
        ("9999", "created by a newer version of merganser (revision 9999)"),
        ("0064", "older than the first release (revision 0064) and can't be upgraded"),
    ],
)
def test_database_of_other_version_is_refused(
    shell: CommandLine, revision: str, error_text: str
) -> None:
    import sqlite3

    with sqlite3.connect(shell.data / "mail.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        oldest = "UPDATE store_facts SET digest = ? WHERE name = 'oldest revision'"
        connection.execute(oldest, (revision,))
    connection.close()
    for arguments in (("init",), ("user", "list")):
        result = shell(*arguments)
        assert result.code == 1
        assert error_text in result.err


@pytest.mark.parametrize(
    ("setting", "value", "error_text"),
    [
        (
            "database_url",
            "postgresql://mail:hunter2@127.0.0.1:1/mail",
            "Cannot use the database postgresql://mail@127.0.0.1:1/mail: ",
        ),
        ("database_url", "postgresql://host:port/x", "a host or port in the address can't be read"),
        ("database_url", "sqlite://", "name a file"),
        ("object_store_url", "nosuch://bucket", "MERGANSER_OBJECT_STORE_URL cannot be used"),
        (
            "object_store_url",
            "s3://b?timeout=abc",
            "MERGANSER_OBJECT_STORE_URL cannot be used: The option 'timeout' is invalid: ",
        ),
        (
            "object_store_url",
            "s3://b?region=x&allow_http=maybe",
            "The option 'allow_http' is invalid",
        ),
        (
            "object_store_url",
            "s3://b?virtual_hosted_style_request=no!",
            "'virtual_hosted_style_request'",
        ),
        ("object_store_url", "s3://b?endpoint=http://x&nosuch=1", "The option 'nosuch' is invalid"),
        ("http_lisen", "x", "Did you mean MERGANSER_HTTP_LISTEN?"),
    ],
)
def test_unusable_store_setting_is_reported_in_one_line(
    shell: CommandLine, setting: str, value: str, error_text: str
) -> None:
    shell.set_settings(**{setting: value})
    result = shell("user", "list")
    assert result.code in (1, 2)
    assert result.err.startswith("merganser: ")
    assert result.err.count("\n") == 1
    assert error_text in result.err
    assert "hunter2" not in result.err


def test_file_that_is_no_database_is_reported_in_one_line(shell_without_store: CommandLine) -> None:
    shell_without_store.data.mkdir()
    (shell_without_store.data / "merganser.db").write_bytes(b"not a database at all" * 100)
    result = shell_without_store("user", "list")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "file is not a database" in result.err


def test_existing_secret_is_not_overwritten(shell_without_store: CommandLine) -> None:
    shell_without_store.data.mkdir()
    first = load_or_create_signing_secret(read_settings())
    create_private_file_if_missing(shell_without_store.data / "secret", "ff" * 32)
    assert load_or_create_signing_secret(read_settings()) == first
    assert len(first) == 32
    assert [path.name for path in shell_without_store.data.iterdir()] == ["secret"]


@pytest.mark.usefixtures("shell")
async def test_server_and_repair_locks_exclude_each_other() -> None:
    store = read_settings().database_url
    assert store_lock.sqlite_server_pid(store) is None
    async with store_lock.lock_as_server(store):
        assert store_lock.sqlite_server_pid(store) == str(os.getpid())
        with pytest.raises(
            CommandError, match=rf"Another merganser process .*\(pid {os.getpid()}\)"
        ):
            async with store_lock.lock_as_server(store):
                pass
        with pytest.raises(
            CommandError, match=r"A merganser server uses this database \(pid \d+\): stop it"
        ):
            async with store_lock.lock_database_exclusively(store):
                pass
    async with store_lock.lock_database_exclusively(store):
        pass


async def test_postgres_is_shared_by_servers_but_not_with_repair(postgres: str) -> None:
    async with store_lock.lock_as_server(postgres), store_lock.lock_as_server(postgres):
        with pytest.raises(CommandError, match="stop all servers"):
            async with store_lock.lock_database_exclusively(postgres):
                pass
    async with store_lock.lock_database_exclusively(postgres):
        with pytest.raises(CommandError, match="is being repaired"):
            async with store_lock.lock_as_server(postgres):
                pass


async def test_check_repair_is_refused_while_server_runs(shell: CommandLine) -> None:
    async with store_lock.lock_as_server(read_settings().database_url):
        result = await asyncio.to_thread(shell, "check", "--repair")
    assert result.code == 1
    assert "stop it, then repair" in result.err


def test_check_finds_and_repairs_wrong_counter(ada: CommandLine) -> None:
    import sqlite3

    ada("check", "--repair")  # repair differences of the fixture
    with sqlite3.connect(ada.data / "mail.db") as connection:
        connection.execute("UPDATE mailboxes SET message_count = 7 WHERE path = 'INBOX'")
    connection.close()
    result = ada("check", "--quick")
    assert result.code == 1
    assert [(finding["rule"], finding["found"]) for finding in result.json["findings"]] == [
        ("message_count", 7)
    ]
    assert ada("check", "--repair").code == 0
    assert ada("check").json["whole"] is True


@pytest.mark.parametrize(
    ("address", "is_public"),
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
def test_listeners_on_public_addresses_are_exposed(address: str, *, is_public: bool) -> None:
    assert exposed_listener_names(Settings(http_listen=address)) == (["HTTP"] if is_public else [])
    assert exposed_listener_names(Settings(lmtp_listen=address)) == (["LMTP"] if is_public else [])


def test_doctor_passes_for_new_installation(shell: CommandLine) -> None:
    shell.set_settings(http_listen="127.0.0.1:0", lmtp_listen="127.0.0.1:0")
    shell("user", "list")
    result = shell("doctor", "--json")
    assert result.code == 0
    verdicts = {row["subject"]: row["verdict"] for row in result.json}
    names = ("database", "object store", "secret", "disk", "HTTP port")
    assert {verdicts[name] for name in names} == {"ok"}


def test_doctor_has_one_name_for_each_check(shell: CommandLine) -> None:
    shell.set_settings(http_listen="127.0.0.1:0", lmtp_listen="127.0.0.1:0")
    shell("user", "list")
    subjects = {row["subject"] for row in shell("doctor", "--json").json}
    names = tuple(name.value for name in CheckName)
    assert {subject for subject in subjects if not subject.endswith(names)} == set()


def test_doctor_names_remedies(shell: CommandLine) -> None:
    import socket

    shell("user", "list")
    (shell.data / "secret").chmod(0o644)
    with socket.socket() as occupied_socket:
        occupied_socket.bind(("127.0.0.1", 0))
        occupied_socket.listen()
        port = occupied_socket.getsockname()[1]
        shell.set_settings(
            http_listen=f"127.0.0.1:{port}",
            lmtp_listen="127.0.0.1:0",
            database_url="postgresql://mail:hunter2@127.0.0.1:1/x",
        )
        result = shell("doctor")
    assert result.code == 1
    for remedy in (
        f"chmod 600 {shell.data}/secret",
        "MERGANSER_HTTP_LISTEN",
        "MERGANSER_DATABASE_URL",
        "postgresql://mail@127.0.0.1:1/x",
    ):
        assert remedy in result.out


def test_fault_point_kills_process_at_given_pass() -> None:
    code = (
        "from merganser.server.environment_factory import fault_point_killer\np = "
        "fault_point_killer('commit:3')\n"
    )
    code += "for n in range(9):\n    p('other'); p('commit'); print(n, flush=True)\n"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False
    )
    assert process.returncode == -9
    assert process.stdout == b"0\n1\n"
    fault_point_killer(None)("commit")


def test_send_test_without_server_is_reported_in_one_line(shell_without_store: CommandLine) -> None:
    shell_without_store.set_settings(lmtp_listen="127.0.0.1:1")
    started_at = time.monotonic()
    result = shell_without_store("send-test", "--to", "ada@example.org")
    assert time.monotonic() - started_at < HANG_SECONDS
    assert result.code == 1
    assert "No LMTP server responds at 127.0.0.1:1" in result.err
    assert "--to RECIPIENT is required." in shell_without_store("send-test").err

"""docs/tutorials/: programs run as written, and tables name existing fields."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from graphql import GraphQLInterfaceType, GraphQLObjectType

from tests.conftest import raw_message
from tests.support.accounts.demo_account import send_by_lmtp
from tests.support.clients import npm_programs
from tests.support.clients.page_commands import block_texts
from tests.support.schema.printed_schema import SDL
from tests.support.servers.merganser_server import PASSWORD, MerganserProcess
from tests.support.time_limits import HANG_SECONDS

TUTORIALS = Path(__file__).parents[2] / "docs/tutorials"
CALL_ROW = re.compile(r"^\| `((?:GET|POST|PUT|DELETE) [^`]+)` \| (.+) \|$", re.MULTILINE)
FIELD = re.compile(r"`(\w+)\.(\w+)`")
MAX_CLIENT_LINES = 100
CALL_COUNTS = {"wildduck": 106, "mailcow": 86}  # operations of their APIs


@pytest.mark.parametrize("system", CALL_COUNTS)
def test_migration_table_names_existing_fields(system: str) -> None:
    rows = CALL_ROW.findall((TUTORIALS / f"migrate-from-{system}.md").read_text())
    assert len(rows) == CALL_COUNTS[system]
    for call, cell in rows:
        fields = FIELD.findall(cell)
        assert bool(fields) != (cell == "Not served yet"), call
        for type_name, field_name in fields:
            schema_type = SDL.type_map[type_name]
            assert isinstance(schema_type, (GraphQLObjectType, GraphQLInterfaceType))
            assert field_name in schema_type.fields, call


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MerganserProcess]:
    """A server with the user ada, who has one message."""
    server = MerganserProcess(tmp_path / "server")
    server.folder.mkdir()
    server.create_users("ada")
    server.start()
    send_by_lmtp(server, "ada@example.org", raw_message("Two herons"))
    yield server
    if server.is_running:
        server.stop()


@asynccontextmanager
async def run_program(
    *command: str | Path, **variables: str
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """Run a program with pipes, and kill it if it still runs at the end."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), env={"PATH": os.environ["PATH"], **variables},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def read_until(process: asyncio.subprocess.Process, text: str) -> list[str]:
    """Return the lines of a program up to the first one that contains the text."""
    assert process.stdout
    lines: list[str] = []
    async with asyncio.timeout(HANG_SECONDS):
        while not lines or text not in lines[-1]:
            line = (await process.stdout.readline()).decode()
            assert line, lines
            lines.append(line)
    return lines


def test_support_script_traces_shows_and_resets(server: MerganserProcess, tmp_path: Path) -> None:
    program = tmp_path / "support.py"
    (text,) = block_texts(TUTORIALS / "support-script.md", "python")
    program.write_text(text)

    def run(*arguments: str, key: str = "root") -> subprocess.CompletedProcess[str]:
        variables = {"ENDPOINT": server.url, "KEY": server.secrets[key]}
        return subprocess.run(
            [sys.executable, program, *arguments],
            env=variables, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
        )  # fmt: skip

    deadline = time.monotonic() + HANG_SECONDS
    while "ACCEPTED" not in run("trace", "ada@example.org", "carol@example.com").stdout:
        assert time.monotonic() < deadline  # trace steps are written in batches
        time.sleep(0.5)
    shown = run("show", "ada@example.org").stdout
    assert "user: ada\n" in shown
    assert re.search(r"^quota: [1-9]\d* of ", shown, re.MULTILINE)
    assert (
        run("show", "nobody@example.org").stderr == "No user has the address nobody@example.org\n"
    )
    assert run("reset", "ada@example.org").stdout.startswith("temporary password: ")
    refused = run("trace", "ada@example.org", key="ada")
    assert (refused.returncode, refused.stdout) == (1, "")


async def test_dashboard_resumes_after_restart_of_server(
    server: MerganserProcess, tmp_path: Path
) -> None:
    program = tmp_path / "dashboard.py"
    (text,) = block_texts(TUTORIALS / "live-dashboard.md", "python")
    program.write_text(text)
    variables = {"ENDPOINT": server.url, "KEY": server.secrets["ada"]}
    async with run_program(sys.executable, program, **variables) as process:
        (counts,) = await read_until(process, "unread")
        assert '"INBOX": 1' in counts
        send_by_lmtp(server, "ada@example.org", raw_message("Before"))
        assert (await read_until(process, "MESSAGE_RECEIVED"))[-1] == "MESSAGE_RECEIVED Before\n"
        assert '"INBOX": 2' in (await read_until(process, "unread"))[-1]
        await asyncio.to_thread(server.stop)
        await read_until(process, "disconnected")
        await asyncio.to_thread(server.start)
        send_by_lmtp(server, "ada@example.org", raw_message("After"))
        assert "After" in (await read_until(process, "MESSAGE_RECEIVED After"))[-1]
        assert '"INBOX": 3' in (await read_until(process, '"INBOX": 3'))[-1]


async def test_mail_client_reads_flags_sends_and_shows_new_mail(
    server: MerganserProcess, tmp_path: Path
) -> None:
    configuration, program = block_texts(TUTORIALS / "mail-client.md", "typescript")
    (operations,) = block_texts(TUTORIALS / "mail-client.md", "graphql tutorial")
    assert len(program.splitlines()) <= MAX_CLIENT_LINES
    (tmp_path / "codegen.ts").write_text(configuration)
    (tmp_path / "mail.ts").write_text(program)
    (tmp_path / "operations.graphql").write_text(operations)
    npm_programs.require_installed()
    (tmp_path / "schema.graphql").symlink_to(npm_programs.PROJECT_FOLDER / "schema.graphql")
    (tmp_path / "node_modules").symlink_to(npm_programs.EXAMPLES / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    npm_programs.run_node(npm_programs.executable_path("graphql-codegen"), folder=tmp_path)
    npm_programs.run_node(
        npm_programs.executable_path("tsc"), "--noEmit", "--strict", "--skipLibCheck",
        "--noUncheckedIndexedAccess", "--allowImportingTsExtensions", "--target", "es2024",
        "--module", "esnext", "--moduleResolution", "bundler", "--lib", "es2024,dom",
        "--types", "node", "--typeRoots", tmp_path / "node_modules/@types", "--ignoreConfig",
        tmp_path / "mail.ts",
        folder=tmp_path,
    )  # fmt: skip
    variables = {"ENDPOINT": server.url, "USERNAME": "ada", "PASSWORD": PASSWORD}
    async with run_program(npm_programs.node_path(), tmp_path / "mail.ts", **variables) as process:
        assert process.stdin
        await read_until(process, "commands: ")
        process.stdin.write(b"folders\nlist INBOX\nopen 0\nflag 0\n")
        assert "INBOX (1)\n" in await read_until(process, "0   carol@example.com: Two herons")
        await read_until(process, "Two herons")
        await read_until(process, "done")
        process.stdin.write(b"list INBOX\n")
        await read_until(process, "0 * carol@example.com: Two herons")
        process.stdin.write(b"send ada@example.org Hello How are you?\n")
        await read_until(process, "new mail: Hello")
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), HANG_SECONDS) == 0

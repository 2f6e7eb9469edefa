"""The replica of examples/ as a process, and the state that it must reach."""

import asyncio
import json
import signal
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.clients import npm_programs
from tests.support.servers.merganser_server import HttpClient
from tests.support.time_limits import HANG_SECONDS

REPLICA_SCRIPT = npm_programs.EXAMPLES / "replica" / "main.ts"
MAILBOX_FIELDS = "id path specialUse uidValidity messageCount unseenCount owner { username }"
MAILBOXES_QUERY = f"""{{ viewer {{ user {{
  mailboxes(first: 1500, filter: {{showHidden: true}}) {{ nodes {{ {MAILBOX_FIELDS} }} }}
  sharedMailboxes(first: 250) {{ nodes {{ {MAILBOX_FIELDS} }} }} }} }} }}"""
MESSAGES_QUERY = """query ($box: ID!, $after: String) { mailbox(by: {id: $box}) {
  messages(first: 250, after: $after) {
    nodes { id imap { uid flags } subject } pageInfo { hasNextPage endCursor } } } }"""


@dataclass
class ReplicaState:
    """Mailboxes and messages by id, with the columns that a replica stores."""

    folders: dict[str, tuple[Any, ...]]
    messages: dict[str, tuple[Any, ...]]


async def load_server_state(client: HttpClient) -> ReplicaState:
    """Load the state of the server."""
    user = (await client(MAILBOXES_QUERY))["viewer"]["user"]
    state = ReplicaState({}, {})
    for mailbox in [*user["mailboxes"]["nodes"], *user["sharedMailboxes"]["nodes"]]:
        state.folders[mailbox["id"]] = (
            mailbox["owner"]["username"],
            *(
                mailbox[name]
                for name in ("path", "specialUse", "uidValidity", "messageCount", "unseenCount")
            ),
        )
        after, has_next_page = None, True
        while has_next_page:
            page = (await client(MESSAGES_QUERY, box=mailbox["id"], after=after))["mailbox"][
                "messages"
            ]
            for message in page["nodes"]:
                flags = sorted(message["imap"]["flags"])
                state.messages[message["id"]] = (
                    mailbox["id"],
                    message["imap"]["uid"],
                    message["subject"],
                    flags,
                )
            has_next_page, after = page["pageInfo"]["hasNextPage"], page["pageInfo"]["endCursor"]
    return state


def read_replica_state(file: Path) -> ReplicaState:
    """Read the state of a replica from its file."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        folders = connection.execute(
            "SELECT folders.id, owner, path, special_use, uid_validity, total, unseen "
            "FROM folders JOIN counters USING (id)"
        ).fetchall()
        messages = connection.execute(
            "SELECT id, folder_id, uid, subject, flags FROM messages"
        ).fetchall()
    return ReplicaState(
        {key: tuple(columns) for key, *columns in folders},
        {key: (*columns, sorted(json.loads(flags))) for key, *columns, flags in messages},
    )


def read_cursor(file: Path) -> str | None:
    """Read the cursor from the file of a replica."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        row = connection.execute("SELECT cursor FROM place").fetchone()
    return row and str(row[0])


class ReplicaProcess:
    """A running replica process."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path) -> None:
        self.process = process
        self.file = file
        self.lines: list[list[str]] = []  # lines of standard output: cursor, kind, details
        self.error_lines: list[str] = []  # lines of standard error

    @property
    def kinds(self) -> list[str]:
        return [line[1] for line in self.lines]

    async def read_line(self) -> list[str]:
        """Read the next line of standard output."""
        assert self.process.stdout
        async with asyncio.timeout(HANG_SECONDS):
            text = (await self.process.stdout.readline()).decode()
        assert text, f"it has ended: {await self.read_error_output()}"
        self.lines.append(text.rstrip("\n").split("\t"))
        return self.lines[-1]

    async def wait_for_state(self) -> list[str]:
        """Wait until the replica has read the state, and return the details of that line."""
        while self.lines[-1:] == [] or self.lines[-1][1] != "STATE":
            await self.read_line()
        return self.lines[-1][2:]

    async def wait_for_cursor(self, cursor: str) -> None:
        """Wait until the replica has reached this cursor."""
        while not self.lines or self.lines[-1][0] != cursor:
            await self.read_line()

    async def wait_for_error_line(self, text: str) -> str:
        """Wait for a line of standard error that contains this text."""
        assert self.process.stderr
        while not self.error_lines or text not in self.error_lines[-1]:
            async with asyncio.timeout(HANG_SECONDS):
                line = (await self.process.stderr.readline()).decode()
            assert line, f"{text} is not in {self.error_lines}"
            self.error_lines.append(line.rstrip("\n"))
        return self.error_lines[-1]

    async def read_error_output(self) -> str:
        """Read standard error to its end, and return all of its lines."""
        assert self.process.stderr
        async with asyncio.timeout(HANG_SECONDS):
            rest = (await self.process.stderr.read()).decode()
        self.error_lines += rest.splitlines()
        return "\n".join(self.error_lines)

    async def wait_for_exit(self) -> int:
        """Wait for the end of the process and return its exit code."""
        async with asyncio.timeout(HANG_SECONDS):
            return await self.process.wait()

    async def stop(self) -> int:
        """Stop the process by SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.wait_for_exit()

    async def kill(self) -> None:
        """Kill the process."""
        self.process.kill()
        assert await self.wait_for_exit() == -signal.SIGKILL


@asynccontextmanager
async def run_replica_program(
    endpoint: str, api_key: str, file: Path, *arguments: str
) -> AsyncGenerator[ReplicaProcess]:
    """Run a replica, with short retry delays."""
    npm_programs.require_installed()
    process = await asyncio.create_subprocess_exec(
        npm_programs.node_path(),
        "--disable-warning=ExperimentalWarning",  # of SQLite in Node.js 22
        str(REPLICA_SCRIPT),
        *("--url", endpoint, "--file", str(file), "--wait", "20", *arguments),
        env={"KEY": api_key, "NO_COLOR": "1", **npm_programs.COMPILE_CACHE},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield ReplicaProcess(process, file)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def assert_same_state(replica_process: ReplicaProcess, client: HttpClient) -> ReplicaState:
    """Wait until the replica has received all changes, and compare its state with the server's."""
    await replica_process.wait_for_cursor(await client.load_cursor())
    server_state = await load_server_state(client)
    replica_state = read_replica_state(replica_process.file)
    assert replica_state.folders == server_state.folders
    assert replica_state.messages == server_state.messages
    return replica_state

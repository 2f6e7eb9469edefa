"""The replica of examples/ in a process of its own, and what it must have come to."""

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
from tests.support.servers.merganser_server import Client

PATIENCE = 60.0  # seconds, for anything it is waited for
MAIN = npm_programs.EXAMPLES / "replica" / "main.ts"
FOLDER = "id path specialUse uidValidity total unseen owner { username }"
FOLDERS = f"""{{ viewer {{ user {{ mailboxes(showHidden: true) {{ {FOLDER} }}
  sharedMailboxes(first: 250) {{ nodes {{ {FOLDER} }} }} }} }} }}"""
MESSAGES = """query ($box: ID!, $after: String) { mailbox(by: {id: $box}) {
  messages(first: 250, after: $after) {
    nodes { id uid subject flags } pageInfo { hasNextPage endCursor } } } }"""


@dataclass
class State:
    """Folders and messages by their ids, each with all that a replica knows of it."""

    folders: dict[str, tuple[Any, ...]]
    messages: dict[str, tuple[Any, ...]]


async def stored(client: Client) -> State:
    """What the server has."""
    user = (await client(FOLDERS))["viewer"]["user"]
    state = State({}, {})
    for box in [*user["mailboxes"], *user["sharedMailboxes"]["nodes"]]:
        state.folders[box["id"]] = (
            box["owner"]["username"],
            *(box[name] for name in ("path", "specialUse", "uidValidity", "total", "unseen")),
        )
        after, more = None, True
        while more:
            page = (await client(MESSAGES, box=box["id"], after=after))["mailbox"]["messages"]
            for each in page["nodes"]:
                flags = sorted(each["flags"])
                state.messages[each["id"]] = (box["id"], each["uid"], each["subject"], flags)
            more, after = page["pageInfo"]["hasNextPage"], page["pageInfo"]["endCursor"]
    return state


def kept(file: Path) -> State:
    """What the replica has."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        folders = db.execute(
            "SELECT folders.id, owner, path, special_use, uid_validity, total, unseen "
            "FROM folders JOIN counters USING (id)"
        ).fetchall()
        messages = db.execute("SELECT id, folder_id, uid, subject, flags FROM messages").fetchall()
    return State(
        {key: tuple(rest) for key, *rest in folders},
        {key: (*rest, sorted(json.loads(flags))) for key, *rest, flags in messages},
    )


def place(file: Path) -> str | None:
    """The cursor in the file."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        row = db.execute("SELECT cursor FROM place").fetchone()
    return row and str(row[0])


class Replica:
    """A process that runs."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path) -> None:
        self.process = process
        self.file = file
        self.heard: list[list[str]] = []  # its lines: cursor, kind, what it is about
        self.noted: list[str] = []  # what it says of its troubles

    @property
    def kinds(self) -> list[str]:
        return [line[1] for line in self.heard]

    async def hear(self) -> list[str]:
        """The next line."""
        assert self.process.stdout
        async with asyncio.timeout(PATIENCE):
            text = (await self.process.stdout.readline()).decode()
        assert text, f"it has ended: {await self.notes()}"
        self.heard.append(text.rstrip("\n").split("\t"))
        return self.heard[-1]

    async def state(self) -> list[str]:
        """Wait until it has read the state; what it says of it."""
        while self.heard[-1:] == [] or self.heard[-1][1] != "STATE":
            await self.hear()
        return self.heard[-1][2:]

    async def reach(self, cursor: str) -> None:
        """Wait until it stands there."""
        while not self.heard or self.heard[-1][0] != cursor:
            await self.hear()

    async def note(self, text: str) -> str:
        """Wait until it says this of its troubles."""
        assert self.process.stderr
        while not self.noted or text not in self.noted[-1]:
            async with asyncio.timeout(PATIENCE):
                line = (await self.process.stderr.readline()).decode()
            assert line, f"{text} is not in {self.noted}"
            self.noted.append(line.rstrip("\n"))
        return self.noted[-1]

    async def notes(self) -> str:
        """All that it says of its troubles, until its end."""
        assert self.process.stderr
        async with asyncio.timeout(PATIENCE):
            rest = (await self.process.stderr.read()).decode()
        self.noted += rest.splitlines()
        return "\n".join(self.noted)

    async def ended(self) -> int:
        """The code it ends with."""
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    async def stop(self) -> int:
        """End it as a service manager does."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        assert await self.ended() == -signal.SIGKILL


@asynccontextmanager
async def replica(endpoint: str, key: str, file: Path, *words: str) -> AsyncGenerator[Replica]:
    """Run it: with short waits, for who waits for it waits too."""
    npm_programs.installed()
    process = await asyncio.create_subprocess_exec(
        npm_programs.node(),
        str(MAIN),
        *("--url", endpoint, "--file", str(file), "--wait", "20", *words),
        env={"KEY": key, "NO_COLOR": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Replica(process, file)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def same(running: Replica, client: Client) -> State:
    """Wait until it has heard all, and compare it with the server."""
    await running.reach(await client.cursor())
    theirs, ours = await stored(client), kept(running.file)
    assert ours.folders == theirs.folders
    assert ours.messages == theirs.messages
    return ours

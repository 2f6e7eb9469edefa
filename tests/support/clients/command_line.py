"""The command line in this process, and the results of commands."""

import asyncio
import contextlib
import json
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from merganser.__main__ import main
from merganser.commands.command_line import create_command_line
from merganser.demo import generate_messages
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import read_settings
from models.errors import AuthenticationFailed
from models.store.outage_log import OUTAGES
from resolvers.auth.authentication import authenticate_request, authenticate_user_by_password
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.support.time_limits import HANG_SECONDS

NEWEST_MESSAGE_DATE = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output, parsed as JSON."""
        return json.loads(self.out)


@dataclass
class CommandLine:
    """Runs commands in this process, on a data folder of its own."""

    data: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str | Path) -> CommandResult:
        """Run a command with these arguments."""
        vars(OUTAGES)["_open"].clear()  # left by commands of earlier tests
        self.monkeypatch.setattr(sys, "argv", ["merganser", *map(str, words)])
        code = main()
        out, err = self.capsys.readouterr()
        return CommandResult(code, out, err)

    def read_rows(self, query: str) -> list[Any]:
        """Read rows from the SQLite file, without our own code."""
        with contextlib.closing(sqlite3.connect(self.data / "mail.db")) as store:
            return store.execute(query).fetchall()

    def change_store(self, change: str) -> None:
        """Run a statement on the SQLite file, without our own code."""
        path = self.data / "mail.db"
        with contextlib.closing(sqlite3.connect(path, timeout=HANG_SECONDS)) as store, store:
            store.execute(change)

    def set_settings(self, **settings: str) -> None:
        """Set environment variables for these settings."""
        for name, value in settings.items():
            self.monkeypatch.setenv(f"MERGANSER_{name.upper()}", value)


def prepare_once(shell: CommandLine, copy: Path, prepare: Callable[[], None]) -> None:
    """Fill the data folder: by `prepare` if `copy` does not exist, else from this copy.

    The first call creates the copy.
    """
    if copy.exists():
        shutil.copytree(copy, shell.data, dirs_exist_ok=True)
    else:
        prepare()
        shutil.copytree(shell.data, copy)


def all_commands() -> dict[str, TyperCommand]:
    """All commands by name, with the group before it: `user add`."""
    return dict(_commands_of_group(create_command_line()))


def _commands_of_group(group: TyperGroup, *group_names: str) -> Iterator[tuple[str, TyperCommand]]:
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, TyperGroup):
            yield from _commands_of_group(command, *group_names, name)
        elif isinstance(command, TyperCommand):
            yield " ".join((*group_names, name)), command


def message_count_by_mailbox(shell: CommandLine) -> dict[str, int]:
    """The number of messages in each mailbox that is not empty."""
    return dict(
        shell.read_rows("SELECT path, message_count FROM mailboxes WHERE message_count > 0")
    )


def write_mbox(path: Path, count: int) -> list[bytes]:
    """Write an mbox file (mboxrd) of `count` messages and return the messages."""
    messages = list(generate_messages(count=count, now=NEWEST_MESSAGE_DATE))
    with path.open("wb") as file:
        for message in messages:
            received_at = message.received_at.strftime("%a %b %d %H:%M:%S %Y")
            file.write(f"From {message.envelope_from or 'MAILER-DAEMON'} {received_at}\n".encode())
            body = message.raw.replace(b"\r\n", b"\n")
            file.write(re.sub(rb"(?m)^(>*From )", rb">\1", body).rstrip(b"\n") + b"\n\n")
    return [message.raw.rstrip(b"\r\n") for message in messages]


def can_sign_in(name: str, password: str) -> bool:
    """True if the password signs the user in to the store of the settings."""

    async def sign_in() -> bool:
        async with open_environment(read_settings()) as environment:
            try:
                return bool(
                    await authenticate_user_by_password(
                        Context(environment, Viewer()), name, password
                    )
                )
            except AuthenticationFailed:
                return False

    return asyncio.run(sign_in())


def authenticate_bearer(secret: str) -> Viewer:
    """Authenticate a request with this bearer token at the store of the settings."""

    async def authenticate() -> Viewer:
        async with open_environment(read_settings()) as environment:
            return await authenticate_request(
                environment, {"authorization": f"Bearer {secret}"}, ip=None
            )

    return asyncio.run(authenticate())

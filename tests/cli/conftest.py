"""The command line in this process, on a data folder of its own."""

import contextlib
import json
import logging
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from merganser.__main__ import main
from models.store.outage_log import OUTAGES
from tests.support.stores import store_fixtures


@dataclass(frozen=True)
class Said:
    """What a command has said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Shell:
    """Runs commands as a shell would."""

    data: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str | Path) -> Said:
        vars(OUTAGES)["_open"].clear()  # of earlier tests: each command is a process of its own
        self.monkeypatch.setattr(sys, "argv", ["merganser", *map(str, words)])
        code = main()
        out, err = self.capsys.readouterr()
        return Said(code, out, err)

    def rows(self, asked: str) -> list[Any]:
        """The rows of a select, past all of our own code."""
        with contextlib.closing(sqlite3.connect(self.data / "mail.db")) as store:
            return store.execute(asked).fetchall()

    def store(self, change: str) -> None:
        """Change the store past all of our own code."""
        path = self.data / "mail.db"
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as store, store:
            store.execute(change)

    def set(self, **settings: str) -> None:
        for name, value in settings.items():
            self.monkeypatch.setenv(f"MERGANSER_{name.upper()}", value)


@pytest.fixture
def bare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shell]:
    """A shell where nothing has been made yet."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    shell = Shell(tmp_path / "var", monkeypatch, capsys)
    shell.set(data=str(shell.data), argon2_memory="8", argon2_time="1", auto_create_domains="on")
    yield shell
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def shell(bare: Shell, sqlite_template: Path) -> Shell:
    """A shell with a store that is migrated and empty."""
    bare.data.mkdir(mode=0o700)
    copied = store_fixtures.copied(sqlite_template, bare.data)
    bare.set(store=copied)
    return bare


@pytest.fixture
def ada(shell: Shell) -> Shell:
    """A shell with the user ada in the store."""
    said = shell("user", "add", "ada", "--address", "ada@example.org", "--no-password")
    assert said.code == 0, said.err
    return shell

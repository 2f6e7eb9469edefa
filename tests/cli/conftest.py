"""The command line in this process, on a data folder of its own."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients.command_line import CommandLine
from tests.support.stores import store_fixtures


@pytest.fixture
def bare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[CommandLine]:
    """A shell where nothing has been made yet."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    shell = CommandLine(tmp_path / "var", monkeypatch, capsys)
    shell.set_settings(
        data=str(shell.data), argon2_memory="8", argon2_time="1", auto_create_domains="on"
    )
    yield shell
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def shell(bare: CommandLine, sqlite_template: Path) -> CommandLine:
    """A shell with a store that is migrated and empty."""
    bare.data.mkdir(mode=0o700)
    copied = store_fixtures.copied(sqlite_template, bare.data)
    bare.set_settings(store=copied)
    return bare


@pytest.fixture
def ada(shell: CommandLine) -> CommandLine:
    """A shell with the user ada in the store."""
    said = shell("user", "add", "ada", "--address", "ada@example.org", "--no-password")
    assert said.code == 0, said.err
    return shell

"""The command line in this process, on a data folder of its own."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients.command_line import CommandLine, prepare_once
from tests.support.stores import store_fixtures


@pytest.fixture
def shell_without_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[CommandLine]:
    """A command line without a database."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    shell = CommandLine(tmp_path / "var", monkeypatch, capsys)
    shell.set_settings(
        data=str(shell.data), argon2_memory_cost="8", argon2_time_cost="1", auto_create_domains="on"
    )
    yield shell
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def shell(shell_without_store: CommandLine, sqlite_template: Path) -> CommandLine:
    """A command line with a migrated, empty database."""
    shell_without_store.data.mkdir(mode=0o700)
    store_url = store_fixtures.copy_sqlite_template(sqlite_template, shell_without_store.data)
    shell_without_store.set_settings(database_url=store_url)
    return shell_without_store


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for copies of data folders, which later tests reuse."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def ada(shell: CommandLine, prepared_folder: Path) -> CommandLine:
    """A command line with the user ada in its database."""

    def add_ada() -> None:
        result = shell("user", "add", "ada", "--address", "ada@example.org", "--no-password")
        assert result.code == 0, result.err

    prepare_once(shell, prepared_folder / "ada", add_ada)
    return shell

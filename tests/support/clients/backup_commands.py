"""Run `merganser backup` with a store that has messages and objects."""

from pathlib import Path

import pytest

from tests.support.accounts.account_rows import message_with_subject
from tests.support.clients.command_line import CommandLine, prepare_once

ATTACHMENT_SIZE = 9000  # bytes, so that each message has an object


def import_messages(shell: CommandLine, folder: Path, *subjects: str) -> None:
    """Import a message with an object of its own for each subject."""
    source = folder / subjects[0]
    source.mkdir()
    for subject in subjects:
        raw = message_with_subject(subject, attachment_size=ATTACHMENT_SIZE)
        (source / f"{subject}.eml").write_bytes(raw)
    result = shell("import", source, "--user", "ada", "--mailbox", "Old")
    assert result.code == 0, result.err


@pytest.fixture
def full_shell(ada: CommandLine, prepared_folder: Path, tmp_path: Path) -> CommandLine:
    """A command line with two messages in its store."""
    copy = prepared_folder / "two messages"
    prepare_once(ada, copy, lambda: import_messages(ada, tmp_path, "one", "two"))
    return ada


def new_shell(shell: CommandLine, data: Path) -> CommandLine:
    """A command line with another, empty data folder."""
    empty = CommandLine(data, shell.monkeypatch, shell.capsys)
    empty.set_settings(data=str(data), database_url=f"sqlite:///{data}/mail.db")
    return empty


def use_settings_of(shell: CommandLine) -> None:
    """Return to the settings of a command line after those of another."""
    shell.set_settings(data=str(shell.data), database_url=f"sqlite:///{shell.data}/mail.db")


def stored_objects(folder: Path) -> list[Path]:
    """The objects of a store in a folder, without its marks."""
    paths = sorted(folder.glob("[0-9a-f][0-9a-f]/*"))
    return [path for path in paths if path.name not in {"merganser.mark", "incarnation.json"}]


def change_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def back_up(shell: CommandLine, target: Path | str, *options: str | Path) -> dict[str, object]:
    """Run `merganser backup`, and return its report."""
    result = shell("backup", target, "--json", *options)
    assert result.code == 0, result.err + result.out
    return dict(result.json)

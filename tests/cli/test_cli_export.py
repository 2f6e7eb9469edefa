"""Tests of `merganser export` and of importing its files with `merganser import`."""

import asyncio
import base64
import io
import mailbox
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from merganser.commands.users import user_operations
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import read_settings
from models.connectors import Connector, ConnectorProtocol, ConnectorSecurity
from models.store.columns import select_columns
from resolvers.connectors import credentials
from resolvers.connectors import mutations as connector_mutations
from tests.support.clients.command_line import (
    CommandLine,
    CommandResult,
    message_count_by_mailbox,
    write_mbox,
)


@pytest.mark.parametrize("extension", ["zip", "tar", "jsonl"])
def test_exported_account_is_imported_completely(
    ada: CommandLine, tmp_path: Path, extension: str
) -> None:
    write_mbox(tmp_path / "a.mbox", 60)
    assert ada("import", tmp_path / "a.mbox", "--user", "ada", "--mailbox", "Old/Ä").code == 0
    path = tmp_path / f"ada.{extension}"
    result = ada("export", path, "--user", "ada")
    assert result.code == 0, result.err
    message_count = ada.read_rows("SELECT count(*) FROM messages")[0][0]
    assert result.out == f"{message_count} messages exported, {path.stat().st_size} bytes.\n"
    assert [
        partial_file.name for partial_file in tmp_path.iterdir() if "part" in partial_file.name
    ] == []
    counts_before = message_count_by_mailbox(ada)
    digest_query = "SELECT sha256, received_at, seen FROM messages ORDER BY 1, 2"
    exported_rows = ada.read_rows(digest_query)
    assert ada("user", "add", "bob", "--address", "bob@example.org", "--no-password").code == 0
    result = ada("import", path, "--user", "bob")
    assert (result.code, result.out) == (0, f"{message_count} messages imported.\n"), result.err
    assert sorted(ada.read_rows(digest_query)) == sorted(exported_rows * 2)
    mailbox_rows = ada.read_rows(
        "SELECT path, message_count FROM mailboxes WHERE message_count > 0 ORDER BY user_id"
    )
    assert mailbox_rows[len(counts_before) :] == mailbox_rows[: len(counts_before)]


def test_one_mailbox_is_exported_as_mbox(ada: CommandLine, tmp_path: Path) -> None:
    write_mbox(tmp_path / "a.mbox", 12)
    ada("import", tmp_path / "a.mbox", "--user", "ada", "--mailbox", "Old")
    message_count = message_count_by_mailbox(ada)["Old"]
    path = tmp_path / "old.file"
    options = ["--user", "ada", "--mailbox", "Old"]
    assert ada("export", path, *options, "--format", "mbox").code == 0
    with closing(mailbox.mbox(path)) as mbox_file:
        assert len(mbox_file) == message_count
    assert ada("export", tmp_path / "b.zip", *options, "--no-settings").code == 0
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert b'"settings"' not in archive.read("merganser/account.json")


@pytest.mark.parametrize(
    ("arguments", "error_text"),
    [
        (("a.zip", "--user", "eve"), "User not found: eve."),
        (("a.doc", "--user", "ada"), "--format is required for a.doc"),
        (("a.zip", "--user", "ada", "--format", "PST"), "--format must be one of"),
        (("a.zip", "--user", "ada", "--mailbox", "None"), "Mailbox not found: None."),
        (("there.zip", "--user", "ada"), "already exists."),
        (("none/a.zip", "--user", "ada"), "Cannot write"),
    ],
)
def test_impossible_export_is_reported_in_one_line(
    ada: CommandLine, tmp_path: Path, arguments: tuple[str, ...], error_text: str
) -> None:
    (tmp_path / "there.zip").write_bytes(b"mine")
    result = ada("export", tmp_path / arguments[0], *arguments[1:])
    assert result.code != 0
    assert result.err.count("\n") == 1
    assert error_text in result.err
    assert (tmp_path / "there.zip").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []


PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of tests
CONNECTOR_INPUT = {
    "name": "far",
    "protocol": ConnectorProtocol.IMAP,
    "host": "imap.example.net",
    "security": ConnectorSecurity.TLS,
    "auth_mechanism": "PLAIN",
    "username": "ada",
}


def create_connector(password: str) -> None:
    async def make() -> None:
        async with open_environment(read_settings()) as environment:
            await connector_mutations.create_connector(
                root_context(environment),
                await user_operations.find_user_id_or_fail_command(environment, "ada"),
                CONNECTOR_INPUT,
                password,
            )

    asyncio.run(make())


def read_connector_passwords() -> list[tuple[bool, str | None]]:
    """Return for each connector whether it is active, and its password."""

    async def look() -> list[tuple[bool, str | None]]:
        async with open_environment(read_settings()) as environment:
            rows = await environment.database.read(
                select(*select_columns(Connector)).order_by(col(Connector.id))
            )
            return [
                (
                    row.active,
                    credentials.decrypt_secret(environment, row.id, row.secret).get("password"),
                )
                for row in rows
            ]

    return asyncio.run(look())


@pytest.mark.parametrize("extension", ["zip", "tar", "jsonl"])
def test_connector_passwords_are_exported_with_passphrase(
    ada: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    def run_with_passphrase(*arguments: str | Path, stdin: str = PASSPHRASE) -> CommandResult:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{stdin}\n"))
        return ada(*arguments, "--passphrase-stdin")

    create_connector("far-away-word")
    path = tmp_path / f"ada.{extension}"
    export_result = run_with_passphrase("export", path, "--user", "ada")
    assert (export_result.code, export_result.err) == (0, "")
    content = path.read_bytes()
    if extension == "zip":
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"imap.example.net" in content
    for secret in (b"far-away-word", PASSPHRASE.encode()):
        assert secret not in content
        assert base64.b64encode(secret)[:-4] not in content
    for name in ("bob", "carol", "dora"):
        assert (
            ada("user", "add", name, "--address", f"{name}@example.org", "--no-password").code == 0
        )
    assert run_with_passphrase("import", path, "--user", "bob").out == "0 messages imported.\n"
    wrong_passphrase_output = run_with_passphrase(
        "import",
        path,
        "--user",
        "carol",
        stdin="The passphrase is wrong, or the secret is damaged or of another account.",
    ).out
    disabled_note = "The connector is inactive until a password is set."
    skip_line = (
        "Skipped password of connector far: The passphrase does not decrypt the password. "
        f"{disabled_note}"
    )
    assert wrong_passphrase_output.splitlines() == ["0 messages imported.", skip_line]
    no_passphrase_output = ada("import", path, "--user", "dora").out
    assert (
        f"Skipped password of connector far: No passphrase was given. {disabled_note}"
        in no_passphrase_output
    )
    assert read_connector_passwords() == [(True, "far-away-word")] * 2 + [(False, None)] * 2
    assert not [
        row for row in ada.read_rows('SELECT "order", result FROM tasks') if PASSPHRASE in str(row)
    ]


@pytest.mark.parametrize(
    ("arguments", "stdin", "error_text"),
    [
        (("export", "a.zip"), "short", "passphrase: Must have from 12 to 1024 characters."),
        (("import", "a.zip"), "", "passphrase: Must have from 12 to 1024 characters."),
        (
            ("export", "a.mbox"),
            PASSPHRASE,
            "Passwords are part of the settings, which are not exported.",
        ),
        (
            ("export", "a.zip", "--no-settings"),
            PASSPHRASE,
            "Passwords are part of the settings, which are not exported.",
        ),
        (
            ("import", "a.zip", "--no-settings"),
            PASSPHRASE,
            "Passwords are part of the settings, which are not imported.",
        ),
    ],
)
def test_invalid_passphrase_is_reported_in_one_line(
    ada: CommandLine, tmp_path: Path, arguments: tuple[str, ...], stdin: str, error_text: str
) -> None:
    ada.monkeypatch.setattr("sys.stdin", io.StringIO(f"{stdin}\n"))
    command, name, *extra = arguments
    result = ada(command, tmp_path / name, *extra, "--user", "ada", "--passphrase-stdin")
    assert result.code != 0
    assert result.err.count("\n") == 1
    assert error_text in result.err
    assert list(tmp_path.glob("a.*")) == []

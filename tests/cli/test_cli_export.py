"""`merganser export`, and back by `merganser import`."""

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

from merganser.commands import user_operations
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


@pytest.mark.parametrize("ending", ["zip", "tar", "jsonl"])
def test_an_account_goes_there_and_back(ada: CommandLine, tmp_path: Path, ending: str) -> None:
    write_mbox(tmp_path / "a.mbox", 60)
    assert ada("import", tmp_path / "a.mbox", "--user", "ada", "--mailbox", "Old/Ä").code == 0
    path = tmp_path / f"ada.{ending}"
    said = ada("export", path, "--user", "ada")
    assert said.code == 0, said.err
    many = ada.read_rows("SELECT count(*) FROM messages")[0][0]
    assert said.out == f"{many} messages exported, {path.stat().st_size} bytes.\n"
    assert [each.name for each in tmp_path.iterdir() if "part" in each.name] == []
    before, digests = (
        message_count_by_mailbox(ada),
        "SELECT digest, received_at, seen FROM messages ORDER BY 1, 2",
    )
    mail = ada.read_rows(digests)
    assert ada("user", "add", "bob", "--address", "bob@example.org", "--no-password").code == 0
    said = ada("import", path, "--user", "bob")
    assert (said.code, said.out) == (0, f"{many} messages imported.\n"), said.err
    assert sorted(ada.read_rows(digests)) == sorted(mail * 2)
    theirs = ada.read_rows("SELECT path, total FROM mailboxes WHERE total > 0 ORDER BY user_id")
    assert theirs[len(before) :] == theirs[: len(before)]


def test_one_mailbox_as_a_file_of_others(ada: CommandLine, tmp_path: Path) -> None:
    write_mbox(tmp_path / "a.mbox", 12)
    ada("import", tmp_path / "a.mbox", "--user", "ada", "--mailbox", "Old")
    many = message_count_by_mailbox(ada)["Old"]
    path = tmp_path / "old.file"
    words = ["--user", "ada", "--mailbox", "Old"]
    assert ada("export", path, *words, "--format", "mbox").code == 0
    with closing(mailbox.mbox(path)) as box:
        assert len(box) == many
    assert ada("export", tmp_path / "b.zip", *words, "--no-settings").code == 0
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert b'"settings"' not in archive.read("merganser/account.json")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("a.zip", "--user", "eve"), "there is no user eve"),
        (("a.doc", "--user", "ada"), "say with --format how to write a.doc"),
        (("a.zip", "--user", "ada", "--format", "PST"), "--format is one of"),
        (("a.zip", "--user", "ada", "--mailbox", "None"), "there is no mailbox None"),
        (("there.zip", "--user", "ada"), "is there already"),
        (("none/a.zip", "--user", "ada"), "cannot write"),
    ],
)
def test_an_export_that_cannot_be_is_one_sentence(
    ada: CommandLine, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "there.zip").write_bytes(b"mine")
    said = ada("export", tmp_path / words[0], *words[1:])
    assert said.code != 0
    assert said.err.count("\n") == 1
    assert sentence in said.err
    assert (tmp_path / "there.zip").read_bytes() == b"mine"
    assert sorted(each.name for each in tmp_path.iterdir() if "part" in each.name) == []


PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of tests
GIVEN = {
    "name": "far",
    "protocol": ConnectorProtocol.IMAP,
    "host": "imap.example.net",
    "security": ConnectorSecurity.TLS,
    "mechanism": "PLAIN",
    "username": "ada",
}


def connect(word: str) -> None:
    async def make() -> None:
        async with open_environment(read_settings()) as world:
            await connector_mutations.create_connector(
                root_context(world),
                await user_operations.user_id_of_name(world, "ada"),
                GIVEN,
                word,
            )

    asyncio.run(make())


def words() -> list[tuple[bool, str | None]]:
    """Of each connector whether it is on, and its password."""

    async def look() -> list[tuple[bool, str | None]]:
        async with open_environment(read_settings()) as world:
            rows = await world.database.read(
                select(*select_columns(Connector)).order_by(col(Connector.id))
            )
            return [
                (row.active, credentials.open_secret(world, row.id, row.secret).get("password"))
                for row in rows
            ]

    return asyncio.run(look())


@pytest.mark.parametrize("ending", ["zip", "tar", "jsonl"])
def test_passwords_of_connectors_go_with_a_passphrase(
    ada: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    def said(*given: str | Path, stdin: str = PASSPHRASE) -> CommandResult:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{stdin}\n"))
        return ada(*given, "--passphrase-stdin")

    connect("far-away-word")
    path = tmp_path / f"ada.{ending}"
    done = said("export", path, "--user", "ada")
    assert (done.code, done.err) == (0, "")
    content = path.read_bytes()
    if ending == "zip":
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
    assert said("import", path, "--user", "bob").out == "0 messages imported.\n"
    wrong = said("import", path, "--user", "carol", stdin="another passphrase").out
    off = "it is switched off until one is set."
    why = f"Skipped password of connector far: the passphrase does not open it: {off}"
    assert wrong.splitlines() == ["0 messages imported.", why]
    none = ada("import", path, "--user", "dora").out
    assert f"Skipped password of connector far: no passphrase was given: {off}" in none
    assert words() == [(True, "far-away-word")] * 2 + [(False, None)] * 2
    assert not [
        row for row in ada.read_rows('SELECT "order", result FROM tasks') if PASSPHRASE in str(row)
    ]


@pytest.mark.parametrize(
    ("given", "stdin", "sentence"),
    [
        (("export", "a.zip"), "short", "passphrase: 12 to 1024 characters"),
        (("import", "a.zip"), "", "passphrase: 12 to 1024 characters"),
        (("export", "a.mbox"), PASSPHRASE, "these are left out"),
        (("export", "a.zip", "--no-settings"), PASSPHRASE, "these are left out"),
        (("import", "a.zip", "--no-settings"), PASSPHRASE, "these are left out"),
    ],
)
def test_a_passphrase_that_cannot_be_is_one_sentence(
    ada: CommandLine, tmp_path: Path, given: tuple[str, ...], stdin: str, sentence: str
) -> None:
    ada.monkeypatch.setattr("sys.stdin", io.StringIO(f"{stdin}\n"))
    command, name, *more = given
    said = ada(command, tmp_path / name, *more, "--user", "ada", "--passphrase-stdin")
    assert said.code != 0
    assert said.err.count("\n") == 1
    assert sentence in said.err
    assert list(tmp_path.glob("a.*")) == []

"""`merganser export`, and back by `merganser import`."""

import mailbox
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Shell
from tests.cli.test_import import folders, mbox


@pytest.mark.parametrize("ending", ["zip", "tar", "jsonl"])
def test_an_account_goes_there_and_back(ada: Shell, tmp_path: Path, ending: str) -> None:
    mbox(tmp_path / "a.mbox", 60)
    assert ada("import", tmp_path / "a.mbox", "--user", "ada", "--mailbox", "Old/Ä").code == 0
    path = tmp_path / f"ada.{ending}"
    said = ada("export", path, "--user", "ada")
    assert said.code == 0, said.err
    many = ada.rows("SELECT count(*) FROM messages")[0][0]
    assert said.out == f"{many} messages exported, {path.stat().st_size} bytes.\n"
    assert [each.name for each in tmp_path.iterdir() if "part" in each.name] == []
    before, digests = folders(ada), "SELECT digest, received_at, seen FROM messages ORDER BY 1, 2"
    mail = ada.rows(digests)
    assert ada("user", "add", "bob", "--address", "bob@example.org", "--no-password").code == 0
    said = ada("import", path, "--user", "bob")
    assert (said.code, said.out) == (0, f"{many} messages imported.\n"), said.err
    assert sorted(ada.rows(digests)) == sorted(mail * 2)
    theirs = ada.rows("SELECT path, total FROM mailboxes WHERE total > 0 ORDER BY user_id")
    assert theirs[len(before) :] == theirs[: len(before)]


def test_one_mailbox_as_a_file_of_others(ada: Shell, tmp_path: Path) -> None:
    mbox(tmp_path / "a.mbox", 12)
    ada("import", tmp_path / "a.mbox", "--user", "ada", "--mailbox", "Old")
    many = folders(ada)["Old"]
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
    ada: Shell, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "there.zip").write_bytes(b"mine")
    said = ada("export", tmp_path / words[0], *words[1:])
    assert said.code != 0
    assert said.err.count("\n") == 1
    assert sentence in said.err
    assert (tmp_path / "there.zip").read_bytes() == b"mine"
    assert sorted(each.name for each in tmp_path.iterdir() if "part" in each.name) == []

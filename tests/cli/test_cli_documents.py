"""`merganser documents`."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.command_line import CommandLine, CommandResult

GOOD = "query Good { viewer { role } }"
BAD = "query Bad {\n  viewer {\n    nothing\n  }\n}"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def listed(shell: CommandLine) -> list[tuple[str, list[str]]]:
    found = shell("documents", "list", "--json").json
    assert all(each["added_at"] for each in found)
    return sorted((each["hash"], each["operations"]) for each in found)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def wrote(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    return path


def apollo(*texts: str, **more: Any) -> dict[str, Any]:
    found = [{"id": sha(text), "name": "x", "type": "query", "body": text} for text in texts]
    return {"format": "apollo-persisted-query-manifest", "version": 1, "operations": found} | more


def test_documents_of_all_kinds_of_files_are_added_once(shell: CommandLine, files: Path) -> None:
    texts = [f"query Q{number} {{ viewer {{ role }} }}" for number in range(4)]
    several = "query A { viewer { role } }\r\nquery B { viewer { scopes } } # ü\n"
    (files / "several.graphql").write_bytes(several.encode())
    given = [
        files / "several.graphql",
        wrote(files / "relay.json", {sha(text): text for text in texts[:2]}),
        wrote(files / "codegen.json", {f"sha256:{sha(texts[2])}": texts[2]}),
        wrote(files / "apollo.json", apollo(texts[1], texts[3])),
        wrote(files / "bare.gql", "{ viewer { role } }"),
    ]
    said = shell("documents", "add", *given)
    assert (said.code, said.out, said.err) == (0, "6 added.\n", "")
    expected = [(sha(text), [f"Q{number}"]) for number, text in enumerate(texts)]
    expected += [(sha(several), ["A", "B"]), (sha("{ viewer { role } }"), [])]
    assert listed(shell) == sorted(expected)
    assert shell("documents", "add", *given[:2]).out == "0 added. 3 were there already.\n"
    assert f"{sha(several)}  A B" in shell("documents", "list").out


def test_a_bad_document_is_named_with_file_and_line_and_nothing_is_added(
    shell: CommandLine, files: Path
) -> None:
    manifest = wrote(files / "all.json", {sha(GOOD): GOOD, sha(BAD): BAD})
    given = [
        wrote(files / "good.graphql", GOOD),
        wrote(files / "bad.graphql", BAD),
        wrote(files / "broken.graphql", "\n\nquery {"),
        wrote(files / "fragment.graphql", "fragment F on Viewer { role }"),
        wrote(
            files / "subscription.graphql", "query A { viewer { role } }\nquery A { viewer {role} }"
        ),
        manifest,
        wrote(files / "apollo.json", apollo(GOOD, BAD)),
    ]
    said = shell("documents", "add", *given)
    assert (said.code, said.out) == (1, "")
    lines = [line.removeprefix(f"{files}/").split(": ", 1) for line in said.err.splitlines()]
    assert lines.pop() == ["merganser", "nothing is added: 6 of 9 documents cannot be trusted"]
    assert [place for place, _ in lines] == [
        "bad.graphql:3", "broken.graphql:3", "fragment.graphql:1", "subscription.graphql:1",
        "all.json:3", "apollo.json:12",
    ]  # fmt: skip
    for _, words in (lines[0], lines[4], lines[5]):
        assert "Cannot query field 'nothing' on type 'Viewer'" in words
    assert lines[4][1].startswith(sha(BAD))
    assert lines[4][1].endswith("(line 3 of it)")
    assert listed(shell) == []


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (hashlib.md5(GOOD.encode(), usedforsecurity=False).hexdigest(), "a hash by MD5"),
        (hashlib.sha1(GOOD.encode(), usedforsecurity=False).hexdigest(), "a hash by SHA-1"),
        (sha(GOOD + " "), "that is not the SHA-256"),
        (sha(GOOD).upper(), "that is not the SHA-256"),
        ("Good", "that is not the SHA-256"),
    ],
)
def test_a_name_that_is_not_the_hash_is_told(
    shell: CommandLine, files: Path, key: str, words: str
) -> None:
    path = wrote(files / "all.json", {key: GOOD})
    said = shell("documents", "add", path)
    assert said.code == 1
    assert said.err.startswith(f"{path}:2: {key}: {words}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{\n "a": ', ":2: that is not JSON"),
        ("[" * 100_000, ":1: that is not JSON"),
        ("[]", "is no manifest"),
        ('{"a": 1}', "is no manifest"),
        ('{"a": {"text": "x"}}', "is no manifest"),
        (apollo(GOOD, version=2), "a version that we do not know"),
        (apollo(GOOD, operations={}), "a version that we do not know"),
        (apollo(GOOD, operations=[1]), "is no manifest"),
        (apollo(GOOD, operations=[{"id": "x"}]), "is no manifest"),
    ],
)
def test_what_is_no_manifest_is_one_sentence(
    shell: CommandLine, files: Path, content: Any, words: str
) -> None:
    said = shell("documents", "add", wrote(files / "all.json", content))
    refused(said, words)


def refused(said: CommandResult, words: str) -> None:
    assert said.code in (1, 2)
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert words in said.err


def test_files_that_cannot_be_read_are_one_sentence(shell: CommandLine, files: Path) -> None:
    refused(shell("documents", "add", files / "nothing.graphql"), "No such file")
    refused(shell("documents", "add", files), "Is a directory")
    (files / "latin.graphql").write_bytes(b"# \xe4\n{ viewer { role } }")
    refused(shell("documents", "add", files / "latin.graphql"), "is not in UTF-8")
    refused(shell("documents", "add"), "Missing argument")


def test_characters_that_not_every_store_can_keep_are_refused(
    shell: CommandLine, files: Path
) -> None:
    said = shell("documents", "add", wrote(files / "nul.graphql", GOOD + "# \0"))
    assert "must not hold the character NUL" in said.err
    assert listed(shell) == []


def test_documents_are_removed_all_or_none(shell: CommandLine, files: Path) -> None:
    other = "{ viewer { role } }"
    shell("documents", "add", wrote(files / "a.graphql", GOOD), wrote(files / "b.graphql", other))
    refused(shell("documents", "remove", sha(GOOD), sha("x")), f"there is no document {sha('x')}")
    refused(shell("documents", "remove", "Good"), "Good is no hash")
    assert len(listed(shell)) == 2
    said = shell("documents", "remove", sha(GOOD), f"sha256:{sha(GOOD)}")
    assert (said.code, said.out) == (0, "1 removed.\n")
    assert listed(shell) == [(sha(other), [])]


def test_the_setting_has_two_values(shell: CommandLine) -> None:
    shell.set_settings(documents="some")
    refused(shell("serve"), "MERGANSER_DOCUMENTS is wrong: write any or trusted")

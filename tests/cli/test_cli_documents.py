"""Tests of `merganser documents`."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.command_line import CommandLine, CommandResult

VALID_DOCUMENT = "query Good { viewer { role } }"
INVALID_DOCUMENT = "query Bad {\n  viewer {\n    nothing\n  }\n}"


def sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def list_documents(shell: CommandLine) -> list[tuple[str, list[str]]]:
    documents = shell("documents", "list", "--json").json
    assert all(document["added_at"] for document in documents)
    return sorted((document["hash"], document["operations"]) for document in documents)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def write_file(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    return path


def apollo_manifest(*texts: str, **extra: Any) -> dict[str, Any]:
    operations = [
        {"id": sha256_hex(text), "name": "x", "type": "query", "body": text} for text in texts
    ]
    return {
        "format": "apollo-persisted-query-manifest",
        "version": 1,
        "operations": operations,
    } | extra


def test_documents_of_all_file_formats_are_added_once(shell: CommandLine, files: Path) -> None:
    texts = [f"query Q{number} {{ viewer {{ role }} }}" for number in range(4)]
    several = "query A { viewer { role } }\r\nquery B { viewer { scopes } } # ü\n"
    (files / "several.graphql").write_bytes(several.encode())
    paths = [
        files / "several.graphql",
        write_file(files / "relay.json", {sha256_hex(text): text for text in texts[:2]}),
        write_file(files / "codegen.json", {f"sha256:{sha256_hex(texts[2])}": texts[2]}),
        write_file(files / "apollo.json", apollo_manifest(texts[1], texts[3])),
        write_file(files / "bare.gql", "{ viewer { role } }"),
    ]
    result = shell("documents", "add", *paths)
    assert (result.code, result.out, result.err) == (0, "6 added.\n", "")
    expected = [(sha256_hex(text), [f"Q{number}"]) for number, text in enumerate(texts)]
    expected += [(sha256_hex(several), ["A", "B"]), (sha256_hex("{ viewer { role } }"), [])]
    assert list_documents(shell) == sorted(expected)
    assert shell("documents", "add", *paths[:2]).out == "0 added. 3 already existed.\n"
    assert f"{sha256_hex(several)}  A B" in shell("documents", "list").out


def test_invalid_document_is_reported_with_line_and_nothing_is_added(
    shell: CommandLine, files: Path
) -> None:
    manifest = write_file(
        files / "all.json",
        {
            sha256_hex(VALID_DOCUMENT): VALID_DOCUMENT,
            sha256_hex(INVALID_DOCUMENT): INVALID_DOCUMENT,
        },
    )
    paths = [
        write_file(files / "good.graphql", VALID_DOCUMENT),
        write_file(files / "bad.graphql", INVALID_DOCUMENT),
        write_file(files / "broken.graphql", "\n\nquery {"),
        write_file(files / "fragment.graphql", "fragment F on Viewer { role }"),
        write_file(
            files / "subscription.graphql", "query A { viewer { role } }\nquery A { viewer {role} }"
        ),
        manifest,
        write_file(files / "apollo.json", apollo_manifest(VALID_DOCUMENT, INVALID_DOCUMENT)),
    ]
    result = shell("documents", "add", *paths)
    assert (result.code, result.out) == (1, "")
    lines = [line.removeprefix(f"{files}/").split(": ", 1) for line in result.err.splitlines()]
    assert lines.pop() == ["merganser", "No documents were added: 6 of 9 documents are invalid."]
    assert [position for position, _ in lines] == [
        "bad.graphql:3", "broken.graphql:3", "fragment.graphql:1", "subscription.graphql:1",
        "all.json:3", "apollo.json:12",
    ]  # fmt: skip
    for _, error_text in (lines[0], lines[4], lines[5]):
        assert "Cannot query field 'nothing' on type 'Viewer'" in error_text
    assert lines[4][1].startswith(sha256_hex(INVALID_DOCUMENT))
    assert lines[4][1].endswith("(line 3 of it)")
    assert list_documents(shell) == []


@pytest.mark.parametrize(
    ("key", "error_text"),
    [
        (
            hashlib.md5(VALID_DOCUMENT.encode(), usedforsecurity=False).hexdigest(),
            "a MD5 hash: set the compiler to SHA-256",
        ),
        (
            hashlib.sha1(VALID_DOCUMENT.encode(), usedforsecurity=False).hexdigest(),
            "a SHA-1 hash: set the compiler to SHA-256",
        ),
        (sha256_hex(VALID_DOCUMENT + " "), "not the SHA-256 of the document"),
        (sha256_hex(VALID_DOCUMENT).upper(), "not the SHA-256 of the document"),
        ("Good", "not the SHA-256 of the document"),
    ],
)
def test_manifest_key_that_is_not_the_hash_is_reported(
    shell: CommandLine, files: Path, key: str, error_text: str
) -> None:
    path = write_file(files / "all.json", {key: VALID_DOCUMENT})
    result = shell("documents", "add", path)
    assert result.code == 1
    assert result.err.startswith(f"{path}:2: {key}: {error_text}")


@pytest.mark.parametrize(
    ("content", "error_text"),
    [
        ('{\n "a": ', ":2 is not JSON."),
        ("[" * 100_000, ":1 is not JSON."),
        ("[]", "is not a manifest: it must be an object of hashes and documents."),
        ('{"a": 1}', "is not a manifest: it must be an object of hashes and documents."),
        (
            '{"a": {"text": "x"}}',
            "is not a manifest: it must be an object of hashes and documents.",
        ),
        (apollo_manifest(VALID_DOCUMENT, version=2), "is a manifest of an unknown version."),
        (apollo_manifest(VALID_DOCUMENT, operations={}), "is a manifest of an unknown version."),
        (
            apollo_manifest(VALID_DOCUMENT, operations=[1]),
            "is not a manifest: it must be an object of hashes and documents.",
        ),
        (
            apollo_manifest(VALID_DOCUMENT, operations=[{"id": "x"}]),
            "is not a manifest: it must be an object of hashes and documents.",
        ),
    ],
)
def test_invalid_manifest_is_reported_in_one_line(
    shell: CommandLine, files: Path, content: Any, error_text: str
) -> None:
    result = shell("documents", "add", write_file(files / "all.json", content))
    assert_one_line_error(result, error_text)


def assert_one_line_error(result: CommandResult, error_text: str) -> None:
    assert result.code in (1, 2)
    assert (result.out, result.err.count("\n")) == ("", 1)
    assert error_text in result.err


def test_unreadable_file_is_reported_in_one_line(shell: CommandLine, files: Path) -> None:
    assert_one_line_error(shell("documents", "add", files / "nothing.graphql"), "No such file")
    assert_one_line_error(shell("documents", "add", files), "Is a directory")
    (files / "latin.graphql").write_bytes(b"# \xe4\n{ viewer { role } }")
    assert_one_line_error(shell("documents", "add", files / "latin.graphql"), "is not in UTF-8")
    assert_one_line_error(shell("documents", "add"), "Missing argument")


def test_document_with_nul_is_refused(shell: CommandLine, files: Path) -> None:
    result = shell("documents", "add", write_file(files / "nul.graphql", VALID_DOCUMENT + "# \0"))
    assert "must not contain the character NUL" in result.err
    assert list_documents(shell) == []


def test_documents_are_removed_all_or_none(shell: CommandLine, files: Path) -> None:
    other = "{ viewer { role } }"
    shell(
        "documents",
        "add",
        write_file(files / "a.graphql", VALID_DOCUMENT),
        write_file(files / "b.graphql", other),
    )
    assert_one_line_error(
        shell("documents", "remove", sha256_hex(VALID_DOCUMENT), sha256_hex("x")),
        f"Document not found: {sha256_hex('x')}.",
    )
    assert_one_line_error(shell("documents", "remove", "Good"), "Good is not a hash.")
    assert len(list_documents(shell)) == 2
    result = shell(
        "documents", "remove", sha256_hex(VALID_DOCUMENT), f"sha256:{sha256_hex(VALID_DOCUMENT)}"
    )
    assert (result.code, result.out) == (0, "1 removed.\n")
    assert list_documents(shell) == [(sha256_hex(other), [])]


def test_invalid_documents_setting_is_refused(shell: CommandLine) -> None:
    shell.set_settings(allowed_documents="some")
    assert_one_line_error(
        shell("serve"), "MERGANSER_ALLOWED_DOCUMENTS is wrong: write any or trusted"
    )

"""Tests that commands record exactly their changes in the journal, as mutations do."""

import json
from io import StringIO

import pytest

from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings
from tests.support.clients.command_line import CommandLine, all_commands, write_mbox
from tests.support.operations.platform.certificate_operations import CertificateSigner
from tests.support.stores import store_fixtures
from tests.support.stores.journal_comparison import assert_journal_matches_rows, new_journal_entries
from tests.support.stores.store_snapshot import StoreRows, snapshot_rows

# commands without changes in the database, or with changes that other tests cover
COMMANDS_WITHOUT_CHANGES = {
    "ban list", "cache clean", "cache flush", "cache list", "cache rescan", "cluster map",
    "session list",
    "session terminate", "log",
    "certificate list", "connector check", "connector list", "connector log", "connector run",
    "doctor", "documents list", "domain arc-key", "domain dkim-list", "domain dns", "domain list",
    "backup", "export", "init", "restore",
    "keys list",
    "schema", "send-test", "serve", "setting get", "setting list", "settings", "api-key list",
    "user list",
}  # fmt: skip
KEY = "submission.maxRecipients"
DOCUMENT = "query Good { viewer { role } }"
PASSWORD = "correct horse battery"  # noqa: S105 - password of a test
# Each command after the commands that prepare it. A word in braces is a file, a token or a hash.
COMMANDS_BY_NAME: dict[str, tuple[list[str], ...]] = {
    "demo": (["demo", "--count", "3"],),
    "import": (["import", "{mbox}", "--user", "ada", "--mailbox", "Old/Mail"],),
    "check": (["check", "--repair"],),
    "user add": (["user", "add", "bob", "--address", "bob@example.org", "--no-password"],),
    "user import": (["user", "import", "{users}"],),
    "user passwd": (["user", "passwd", "ada", "--password-stdin"],),
    "user delete": (["user", "delete", "ada", "--yes"],),
    "user restore": (
        ["user", "delete", "ada", "--after", "30 days", "--yes"],
        ["user", "restore", "ada"],
    ),
    "api-key create": (["api-key", "create", "--name", "reports", "--user", "ada"],),
    "api-key revoke": (
        ["api-key", "create", "--name", "reports", "--user", "ada"],
        ["api-key", "revoke", "{token}"],
    ),
    "domain add": (["domain", "add", "new.example"],),
    "domain rename": (["domain", "rename", "example.org", "example.net"],),
    "domain delete": (["domain", "add", "new.example"], ["domain", "delete", "new.example"]),
    "domain dkim-add": (["domain", "dkim-add", "example.org"],),
    "domain dkim-rotate": (
        ["domain", "dkim-add", "example.org", "--algorithm", "ed25519"],
        ["domain", "dkim-rotate", "example.org"],
    ),
    "domain dkim-activate": (
        ["domain", "dkim-add", "example.org", "--algorithm", "ed25519"],
        ["domain", "dkim-add", "example.org", "--algorithm", "ed25519", "--selector", "new"],
        ["domain", "dkim-activate", "example.org", "dkim"],
    ),
    "certificate set": (["certificate", "set", "mx.example.org", "--cert", "{pem}"],),
    "certificate renew": (
        ["certificate", "set", "mx.example.org", "--cert", "{pem}", "--acme"],
        ["certificate", "renew", "mx.example.org"],
    ),
    "certificate delete": (
        ["certificate", "set", "mx.example.org", "--acme"],
        ["certificate", "delete", "mx.example.org"],
    ),
    "ban add": (["ban", "add", "203.0.113.0/24"],),
    "ban lift": (["ban", "add", "203.0.113.0/24"], ["ban", "lift", "203.0.113.0/24"]),
    "setting set": (["setting", "set", KEY, "50"],),
    "setting unset": (["setting", "set", KEY, "50"], ["setting", "unset", KEY]),
    "documents add": (["documents", "add", "{document}"],),
    "documents remove": (
        ["documents", "add", "{document}"],
        ["documents", "remove", "{hash}"],
    ),
    "keys rotate": (["keys", "rotate"],),
}
COMMANDS_WITHOUT_ENTRIES = {  # their changes are not sent to clients
    "check", "documents add", "documents remove", "keys rotate",
}  # fmt: skip


def read_all_rows(shell: CommandLine) -> StoreRows:
    async def read_rows() -> StoreRows:
        settings = Settings(
            data=shell.data, database_url=f"sqlite+aiosqlite:///{shell.data}/mail.db"
        )
        async with open_environment(settings) as environment:
            return await snapshot_rows(environment)

    return store_fixtures.run_in_new_loop(read_rows())


@pytest.fixture(scope="module")
def placeholder_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The paths of the files that commands read, by their placeholders."""
    folder = tmp_path_factory.mktemp("files")
    write_mbox(folder / "old.mbox", 5)
    (folder / "good.graphql").write_text(DOCUMENT)
    (folder / "users.csv").write_text("address,passwordDisabled\nbob@example.org,true\n")
    (folder / "mx.pem").write_text("".join(CertificateSigner().issue_certificate()))
    return {
        "{mbox}": str(folder / "old.mbox"),
        "{document}": str(folder / "good.graphql"),
        "{pem}": str(folder / "mx.pem"),
        "{users}": str(folder / "users.csv"),
    }


def test_every_command_is_listed_once() -> None:
    assert {*COMMANDS_BY_NAME} | COMMANDS_WITHOUT_CHANGES == set(all_commands())
    assert not {*COMMANDS_BY_NAME} & COMMANDS_WITHOUT_CHANGES


@pytest.mark.parametrize("name", COMMANDS_BY_NAME)
def test_journal_matches_changes_of_command(
    name: str,
    ada: CommandLine,
    placeholder_files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    placeholders = dict(placeholder_files)
    *preparations, arguments = COMMANDS_BY_NAME[name]
    for preparation in preparations:
        result = ada(*(placeholders.get(word, word) for word in preparation))
        assert result.code == 0, result.err
    if "{hash}" in arguments:
        (row,) = json.loads(ada("documents", "list", "--json").out)
        placeholders["{hash}"] = row["hash"]
    if "{token}" in arguments:
        (row,) = json.loads(ada("api-key", "list", "--json").out)
        placeholders["{token}"] = row["id"]
    if "--password-stdin" in arguments:
        monkeypatch.setattr("sys.stdin", StringIO(f"{PASSWORD}\n"))
    rows_before = read_all_rows(ada)
    result = ada(*(placeholders.get(word, word) for word in arguments))
    assert result.code == 0, result.err
    rows_after = read_all_rows(ada)
    assert_journal_matches_rows(rows_before, rows_after)
    assert bool(new_journal_entries(rows_before, rows_after)) is (
        name not in COMMANDS_WITHOUT_ENTRIES
    )

"""Commands that write tell the journal exactly what they change, as mutations do."""

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from merganser.commands.command_line import create_command_line
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings
from tests.support.clients.command_line import CommandLine, write_mbox
from tests.support.operations.certificate_operations import Signer
from tests.support.stores import store_fixtures
from tests.support.stores.journal_comparison import assert_journal_matches_rows, new_journal_entries
from tests.support.stores.store_snapshot import Rows, everything

# commands that change nothing in a store, or do what a server does: its roads are walked elsewhere
READS = {
    "certificate list", "connector check", "connector list", "connector log", "connector run",
    "doctor", "documents list", "domain arc-key", "domain dkim-list", "domain dns", "domain list",
    "export", "init",
    "keys list",
    "schema", "send-test", "serve", "setting get", "setting list", "settings", "token list",
    "user list",
}  # fmt: skip
KEY = "submission.maxRecipients"
DOCUMENT = "query Good { viewer { role } }"
PASSWORD = "correct horse battery"  # noqa: S105 - a test's
# the commands, with those before them; a word in braces is a file, a token or a hash
WRITES: dict[str, tuple[list[str], ...]] = {
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
    "token create": (["token", "create", "--name", "reports", "--user", "ada"],),
    "token revoke": (
        ["token", "create", "--name", "reports", "--user", "ada"],
        ["token", "revoke", "{token}"],
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
    "setting set": (["setting", "set", KEY, "50"],),
    "setting unset": (["setting", "set", KEY, "50"], ["setting", "unset", KEY]),
    "documents add": (["documents", "add", "{document}"],),
    "documents remove": (
        ["documents", "add", "{document}"],
        ["documents", "remove", "{hash}"],
    ),
    "keys rotate": (["keys", "rotate"],),
}
SILENT = {  # what they change no client hears of
    "check", "documents add", "documents remove", "keys rotate",
}  # fmt: skip


def leaves(group: TyperGroup, *before: str) -> Iterator[str]:
    """The names of all commands, with the groups they are in."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from leaves(command, *before, name)
        else:
            yield " ".join((*before, name))


def rows(shell: CommandLine) -> Rows:
    async def work() -> Rows:
        settings = Settings(data=shell.data, store=f"sqlite+aiosqlite:///{shell.data}/mail.db")
        async with open_environment(settings) as world:
            return await everything(world)

    return store_fixtures.run(work())


def test_every_command_writes_or_reads() -> None:
    whole = get_command(create_command_line())
    assert isinstance(whole, TyperGroup)
    assert {*WRITES} | READS == set(leaves(whole))
    assert not {*WRITES} & READS


@pytest.mark.parametrize("name", WRITES)
def test_the_journal_tells_exactly_what_a_command_changed(
    name: str, ada: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mbox(tmp_path / "old.mbox", 5)
    (tmp_path / "good.graphql").write_text(DOCUMENT)
    (tmp_path / "users.csv").write_text("address,passwordDisabled\nbob@example.org,true\n")
    (tmp_path / "mx.pem").write_text("".join(Signer().issue()))
    given = {
        "{mbox}": str(tmp_path / "old.mbox"),
        "{document}": str(tmp_path / "good.graphql"),
        "{pem}": str(tmp_path / "mx.pem"),
        "{users}": str(tmp_path / "users.csv"),
    }
    *preparing, words = WRITES[name]
    for each in preparing:
        said = ada(*(given.get(word, word) for word in each))
        assert said.code == 0, said.err
    if "{hash}" in words:
        (found,) = json.loads(ada("documents", "list", "--json").out)
        given["{hash}"] = found["hash"]
    if "{token}" in words:
        (found,) = json.loads(ada("token", "list", "--json").out)
        given["{token}"] = found["id"]
    if "--password-stdin" in words:
        monkeypatch.setattr("sys.stdin", StringIO(f"{PASSWORD}\n"))
    before = rows(ada)
    said = ada(*(given.get(word, word) for word in words))
    assert said.code == 0, said.err
    after = rows(ada)
    assert_journal_matches_rows(before, after)
    assert bool(new_journal_entries(before, after)) is (name not in SILENT)

"""`merganser user` and `merganser token`."""

import asyncio
import io
import sqlite3
from pathlib import Path

import pytest

from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import read_settings
from models.errors import Unauthenticated
from models.store.keyset_pages import MAX_PAGE_SIZE
from models.users.roles import Role, Scope
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewApiKey
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.support.clients.command_line import CommandLine, authenticate_bearer, can_sign_in


def test_a_user_is_made_listed_and_signs_in(
    shell: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.set_settings(auto_create_domains="off")
    words = ("user", "add", "ada@example.org", "--password-stdin", "--quota", "5 GiB")
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    said = shell(*words)
    assert (said.code, "there is no domain example.org" in said.err) == (1, True)
    assert shell("domain", "add", "example.org", "--no-dkim").code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    said = shell(*words, "--role", "ADMIN")
    assert (said.code, said.err) == (0, "")
    (row,) = shell("user", "list", "--json").json
    assert (row["username"], row["address"]) == ("ada@example.org", "ada@example.org")
    assert (row["role"], row["quota"]) == ("ADMIN", 5 << 30)
    assert "ada@example.org" in shell("user", "list").out
    assert can_sign_in("ada@example.org", "correct horse")
    assert not can_sign_in("ada@example.org", "correct house")


def test_accounts_of_a_file_are_created_and_refusals_have_their_line(
    ada: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "users.csv"
    file.write_text(
        "address,password,hashedPassword,quota\n"
        "eve@example.org,$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1,true,2 GiB\n"
        "ada@example.org,$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1,true,\n"
        "dan@example.org,none,true,\n"
    )
    said = ada("user", "import", str(file))
    assert (said.code, said.out.strip()) == (1, "1 accounts created, 2 refused.")
    assert [line.split(":")[:2] for line in said.err.splitlines()] == [
        ["line 3", " address"],
        ["line 4", " password"],
    ]
    assert can_sign_in("eve@example.org", "secret")
    again = ada("user", "import", str(file), "--format", "CSV")
    assert (again.code, again.out.strip()) == (1, "0 accounts created, 3 refused.")
    file.write_text('{"address": "dan@example.org", "passwordDisabled": true}\n')
    said = ada("user", "import", str(file))
    assert (said.code, said.out.strip(), said.err) == (0, "1 accounts created, 0 refused.", "")
    file.write_text("mail\nx\n")
    said = ada("user", "import", str(file))
    assert (said.code, "unknown columns: mail" in said.err) == (1, True)
    assert ada("user", "import", str(tmp_path / "none")).code == 1


def test_another_password_ends_the_old_one(
    ada: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for password in ("first one", "second one"):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
        assert ada("user", "passwd", "ada", "--password-stdin").code == 0
    assert can_sign_in("ada@example.org", "second one")
    assert not can_sign_in("ada@example.org", "first one")


def test_passwords_are_as_strong_as_their_domain_wants(
    ada: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(ada.data / "mail.db") as store:
        store.execute("UPDATE domains SET password_min = 12, password_classes = 2")
    store.close()
    add = ("user", "add", "bob@example.org", "--password-stdin")
    for words in (("user", "passwd", "ada", "--password-stdin"), add):
        for password, code, told in (
            ("eleven sign", 1, "password: at least 12 characters"),
            ("twelvesigns1", 0, ""),
        ):
            monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
            said = ada(*words)
            assert (said.code, told in said.err) == (code, True)
            assert password not in said.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("user", "add", "ada", "--no-password"), "the user name is taken"),
        (("user", "add", "bob", "--address", "ada@example.org", "--no-password"), "is taken"),
        (("user", "add", "bob", "--no-password"), "has an address"),
        (("user", "add", "b b", "--address", "b b@x.org", "--no-password"), "; username: a user"),
        (("user", "add", "b@x.org", "--no-password", "--quota", "much"), "write a size"),
        (("user", "add", "b@x.org"), "--password-stdin"),
        (("user", "passwd", "bob", "--password-stdin"), "there is no password on stdin"),
        (("user", "delete", "ada"), "say --yes, or --after"),
        (("user", "delete", "bob", "--yes"), "no such object"),
        (("user", "delete", "ada", "--after", "soon"), "--after: write"),
        (("user", "restore", "bob"), "no such object"),
        (("user", "restore", "ada"), "not deleted"),
        (("user", "list", "--query", "x" * 1001), "at most 1000"),
        (("token", "create", "--name", "x"), "say whose key it is"),
        (("token", "create", "--name", "x", "--user", "bob"), "there is no user bob"),
        (("token", "create", "--name", "x", "--user", "ada", "--role", "ROOT"), "ROOT"),
        (("token", "create", "--name", "x", "--user", "ada", "--expires", "soon"), "30 days"),
        (("token", "revoke", "nonsense"), "no id of a key"),
        (("token", "revoke", "key_A3ZQadz2HH4"), "there is no key"),
    ],
)
def test_a_refusal_is_one_sentence(
    ada: CommandLine, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    if words[:3] == ("user", "add", "ada"):
        words = (*words, "--address", "ada2@example.org")
    said = ada(*words)
    assert said.code in (1, 2)
    assert said.out == ""
    assert said.err.startswith("merganser: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err


def test_a_list_is_narrowed(ada: CommandLine) -> None:
    assert ada("user", "add", "bob@new.example", "--no-password").code == 0

    def names(*words: str) -> list[str]:
        return [row["username"] for row in ada("user", "list", "--json", *words).json]

    assert names("--query", "ADA") == ["ada"]
    assert names("--domain", "New.example") == ["bob@new.example"]
    assert names("--disabled") == []
    assert names("--enabled", "--query", "new.ex") == ["bob@new.example"]
    assert names("--tag", "x") == []


def test_an_account_is_deleted_and_comes_back(ada: CommandLine) -> None:
    said = ada("user", "delete", "A.da@example.org", "--after", "2099-12-24")
    assert (said.code, said.err) == (0, "")
    assert "kept until 2099-12-2" in said.out
    assert ada("user", "list", "--json").json == []
    assert "kept until 2098" in ada("user", "delete", "ada", "--after", "2098-06-01").out
    said = ada("user", "restore", "ada")
    assert said.out == "ada is back, with ada@example.org.\n"
    assert [row["address"] for row in ada("user", "list", "--json").json] == ["ada@example.org"]
    assert "removed by" in ada("user", "delete", "ada", "--yes").out
    assert ada("user", "add", "bob", "--address", "ada@example.org", "--no-password").code == 0
    said = ada("user", "restore", "ada")
    assert said.out == "ada is back, with no address.\n"
    assert said.err.endswith("ada@example.org\n")


def test_a_key_is_shown_once_works_and_is_revoked(ada: CommandLine) -> None:
    said = ada(
        "token", "create", "--name", "backup", "--user", "ada", "--scope", "MAIL_READ",
        "--read-only", "--expires", "30 days",
    )  # fmt: skip
    assert said.code == 0
    secret = said.out.strip()  # and nothing else: it may go into a variable
    viewer = authenticate_bearer(secret)
    assert (viewer.role, viewer.scopes, viewer.read_only) == (
        Role.USER,
        frozenset({Scope.MAIL_READ}),
        True,
    )
    listed = ada("token", "list", "--json")
    (row,) = listed.json
    assert (row["name"], row["user"], row["scopes"]) == ("backup", "ada", ["MAIL_READ"])
    assert secret not in listed.out
    assert ada("token", "revoke", row["id"]).code == 0
    assert ada("token", "list", "--json").json == []
    with pytest.raises(Unauthenticated):
        authenticate_bearer(secret)


def test_a_key_of_the_platform_belongs_to_nobody(shell: CommandLine) -> None:
    secret = shell("token", "create", "--name", "root", "--role", "ROOT").out.strip()
    viewer = authenticate_bearer(secret)
    assert (viewer.user_id, viewer.role) == (0, Role.ROOT)


def test_lists_are_whole_however_long(shell: CommandLine) -> None:
    async def fill() -> None:
        async with open_environment(read_settings()) as world:
            for number in range(MAX_PAGE_SIZE + 5):
                user = NewUser(f"u.{number}", address=f"{number}@x.org", password_disabled=True)
                made = await creation_create.create_user(root_context(world), user)
                await api_keys.create_api_key(root_context(world), NewApiKey("k", user_id=made.id))

    asyncio.run(fill())
    names = [row["username"] for row in shell("user", "list", "--json").json]
    assert sorted(names) == sorted(f"u.{number}" for number in range(MAX_PAGE_SIZE + 5))
    owners = [row["user"] for row in shell("token", "list", "--json").json]
    assert sorted(owners) == sorted(names)


def test_a_store_that_fails_in_the_middle_is_one_sentence(ada: CommandLine) -> None:
    with sqlite3.connect(ada.data / "mail.db") as store:
        store.execute("DROP TABLE api_keys")
    store.close()
    said = ada("token", "list")
    assert (said.code, said.err) == (
        1,
        "merganser: it could not be done: no such table: api_keys\n",
    )

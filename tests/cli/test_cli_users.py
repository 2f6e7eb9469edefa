"""Tests of `merganser user` and `merganser api-key`."""

import asyncio
import io
import sqlite3
from pathlib import Path

import pytest

from graph.types.global_ids import encode
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import read_settings
from models.errors import Unauthenticated
from models.store.keyset_pages import MAX_PAGE_SIZE
from models.users.roles import Role, Scope
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.users.creation import bulk_create
from resolvers.users.creation.bulk_create import MAX_USERS
from resolvers.users.creation.create import NewUser
from tests.support.clients.command_line import CommandLine, authenticate_bearer, can_sign_in


def test_user_is_created_listed_and_can_sign_in(
    shell: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.set_settings(auto_create_domains="off")
    arguments = ("user", "add", "ada@example.org", "--password-stdin", "--quota", "5 GiB")
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    result = shell(*arguments)
    assert (result.code, "Domain not found: example.org." in result.err) == (1, True)
    assert shell("domain", "add", "example.org", "--no-dkim").code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    result = shell(*arguments, "--role", "ADMIN")
    assert (result.code, result.err) == (0, "")
    (row,) = shell("user", "list", "--json").json
    assert (row["username"], row["address"]) == ("ada@example.org", "ada@example.org")
    assert (row["role"], row["quota"]) == ("ADMIN", 5 << 30)
    assert "ada@example.org" in shell("user", "list").out
    assert can_sign_in("ada@example.org", "correct horse")
    assert not can_sign_in("ada@example.org", "correct house")


def test_user_import_creates_users_and_reports_refused_lines(
    ada: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "users.csv"
    file.write_text(
        "address,password,hashedPassword,quota\n"
        "eve@example.org,$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1,true,2 GiB\n"
        "ada@example.org,$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1,true,\n"
        "dan@example.org,none,true,\n"
    )
    result = ada("user", "import", str(file))
    assert (result.code, result.out.strip()) == (1, "1 accounts created, 2 refused.")
    assert [line.split(":")[:2] for line in result.err.splitlines()] == [
        ["Line 3", " address"],
        ["Line 4", " password"],
    ]
    assert can_sign_in("eve@example.org", "secret")
    second_result = ada("user", "import", str(file), "--format", "CSV")
    assert (second_result.code, second_result.out.strip()) == (1, "0 accounts created, 3 refused.")
    file.write_text('{"address": "dan@example.org", "passwordDisabled": true}\n')
    result = ada("user", "import", str(file))
    assert (result.code, result.out.strip(), result.err) == (
        0,
        "1 accounts created, 0 refused.",
        "",
    )
    file.write_text("mail\nx\n")
    result = ada("user", "import", str(file))
    assert (result.code, "Unknown columns: mail." in result.err) == (1, True)
    assert ada("user", "import", str(tmp_path / "none")).code == 1


def test_new_password_replaces_old_one(ada: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    for password in ("first one", "second one"):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
        assert ada("user", "passwd", "ada", "--password-stdin").code == 0
    assert can_sign_in("ada@example.org", "second one")
    assert not can_sign_in("ada@example.org", "first one")


def test_password_must_meet_policy_of_domain(
    ada: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(ada.data / "mail.db") as connection:
        connection.execute("UPDATE domains SET password_min = 12, password_classes = 2")
    connection.close()
    add = ("user", "add", "bob@example.org", "--password-stdin")
    for arguments in (("user", "passwd", "ada", "--password-stdin"), add):
        for password, code, error_text in (
            ("eleven sign", 1, "password: The password must have at least 12 characters."),
            ("twelvesigns1", 0, ""),
        ):
            monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
            result = ada(*arguments)
            assert (result.code, error_text in result.err) == (code, True)
            assert password not in result.err


@pytest.mark.parametrize(
    ("arguments", "error_text"),
    [
        (("user", "add", "ada", "--no-password"), "The username already exists"),
        (
            ("user", "add", "bob", "--address", "ada@example.org", "--no-password"),
            "The address already exists.",
        ),
        (
            ("user", "add", "bob", "--no-password"),
            "An address is required, or `emptyAddress: true`.",
        ),
        (
            ("user", "add", "b b", "--address", "b b@x.org", "--no-password"),
            " username: A username must have",
        ),
        (("user", "add", "b@x.org", "--no-password", "--quota", "much"), "write a size"),
        (("user", "add", "b@x.org"), "--password-stdin"),
        (("user", "passwd", "bob", "--password-stdin"), "Standard input has no password."),
        (("user", "delete", "ada"), "confirm with --yes, or delay with --after."),
        (("user", "delete", "bob", "--yes"), "User not found: bob."),
        (
            ("user", "delete", "ada", "--after", "soon"),
            '--after: Must be a duration such as "30 days"',
        ),
        (("user", "restore", "bob"), "User not found: bob."),
        (("user", "restore", "ada"), "The user is not deleted."),
        (("user", "list", "--query", "x" * 1001), "at most 1000"),
        (
            ("api-key", "create", "--name", "x", "--role", "KING"),
            "Invalid value for '--role': 'KING' is not one of 'PUBLIC', 'USER', 'DOMAIN_ADMIN', "
            "'ADMIN', 'ROOT'",
        ),
        (("api-key", "create", "--name", "x"), "--user, --domain or --role ADMIN is required."),
        (
            ("api-key", "create", "--name", "x", "--role", "ADMIN", "--domain", "no.example"),
            "Domain not found: no.example.",
        ),
        (("api-key", "create", "--name", "x", "--domain", "example.org"), "DOMAIN_ADMIN or above"),
        (("api-key", "create", "--name", "x", "--user", "bob"), "User not found: bob."),
        (("api-key", "create", "--name", "x", "--user", "ada", "--role", "ROOT"), "ROOT"),
        (("api-key", "create", "--name", "x", "--user", "ada", "--expires", "soon"), "30 days"),
        (("api-key", "revoke", "nonsense"), "Not the ID of an API key."),
        (("api-key", "revoke", "key_A3ZQadz2HH4"), "API key not found: "),
    ],
)
def test_user_error_is_reported_in_one_line(
    ada: CommandLine, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], error_text: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    if arguments[:3] == ("user", "add", "ada"):
        arguments = (*arguments, "--address", "ada2@example.org")
    result = ada(*arguments)
    assert result.code in (1, 2)
    assert result.out == ""
    assert result.err.startswith("merganser: ")
    assert result.err.count("\n") == 1
    assert error_text in result.err


def test_user_list_is_filtered(ada: CommandLine) -> None:
    assert ada("user", "add", "bob@new.example", "--no-password").code == 0

    def usernames(*arguments: str) -> list[str]:
        return [row["username"] for row in ada("user", "list", "--json", *arguments).json]

    assert usernames("--query", "ADA") == ["ada"]
    assert usernames("--domain", "New.example") == ["bob@new.example"]
    assert usernames("--inactive") == []
    assert usernames("--active", "--query", "new.ex") == ["bob@new.example"]
    assert usernames("--tag", "x") == []


def test_deleted_user_is_restored(ada: CommandLine) -> None:
    result = ada("user", "delete", "A.da@example.org", "--after", "2099-12-24")
    assert (result.code, result.err) == (0, "")
    assert "kept until 2099-12-2" in result.out
    assert ada("user", "list", "--json").json == []
    assert "kept until 2098" in ada("user", "delete", "ada", "--after", "2098-06-01").out
    result = ada("user", "restore", "ada")
    assert result.out == "ada is back, with ada@example.org.\n"
    assert [row["address"] for row in ada("user", "list", "--json").json] == ["ada@example.org"]
    assert "removed by" in ada("user", "delete", "ada", "--yes").out
    assert ada("user", "add", "bob", "--address", "ada@example.org", "--no-password").code == 0
    result = ada("user", "restore", "ada")
    assert result.out == "ada is back, with no address.\n"
    assert result.err.endswith("ada@example.org\n")


def test_api_key_is_shown_once_works_and_is_revoked(ada: CommandLine) -> None:
    result = ada(
        "api-key", "create", "--name", "backup", "--user", "ada", "--scope", "MAIL_READ",
        "--read-only", "--expires", "30 days",
    )  # fmt: skip
    assert result.code == 0
    # the output is only the secret, so that a shell variable can hold it
    secret = result.out.strip()
    viewer = authenticate_bearer(secret)
    assert (viewer.role, viewer.scopes, viewer.read_only) == (
        Role.USER,
        frozenset({Scope.MAIL_READ}),
        True,
    )
    list_result = ada("api-key", "list", "--json")
    (row,) = list_result.json
    assert (row["name"], row["user"], row["scopes"]) == ("backup", "ada", ["MAIL_READ"])
    assert secret not in list_result.out
    assert ada("api-key", "revoke", row["id"]).code == 0
    assert ada("api-key", "list", "--json").json == []
    with pytest.raises(Unauthenticated):
        authenticate_bearer(secret)


def test_platform_api_key_has_no_user(shell: CommandLine) -> None:
    secret = shell("api-key", "create", "--name", "root", "--role", "ROOT").out.strip()
    viewer = authenticate_bearer(secret)
    assert (viewer.user_id, viewer.role) == (0, Role.ROOT)


def test_api_key_is_restricted_to_domains(ada: CommandLine) -> None:
    assert ada("domain", "add", "other.example", "--no-dkim").code == 0
    options = ("--role", "DOMAIN_ADMIN", "--domain", "example.org", "--scope", "SCIM")
    viewer = authenticate_bearer(ada("api-key", "create", "--name", "scim", *options).out.strip())
    assert (viewer.user_id, viewer.role, viewer.scopes) == (
        0, Role.DOMAIN_ADMIN, frozenset({Scope.SCIM}),
    )  # fmt: skip
    domain_ids = {row["name"]: row["id"] for row in ada("domain", "list", "--json").json}
    assert {encode("Domain", key) for key in viewer.administered_domains} == {
        domain_ids["example.org"]
    }
    (row,) = ada("api-key", "list", "--json").json
    assert (row["user"], row["domains"]) == (None, ["example.org"])


def test_lists_longer_than_a_page_are_complete(shell: CommandLine) -> None:
    async def create_users() -> None:
        async with open_environment(read_settings()) as environment:
            ctx = root_context(environment)
            new_users = [
                NewUser(f"u.{number}", address=f"{number}@x.org", password_disabled=True)
                for number in range(MAX_PAGE_SIZE + 5)
            ]
            for first in range(0, len(new_users), MAX_USERS):
                for user in await bulk_create.create_users(
                    ctx, new_users[first : first + MAX_USERS]
                ):
                    await api_key_mutations.create_api_key(ctx, NewApiKey("k", user_id=user.id))

    asyncio.run(create_users())
    usernames = [row["username"] for row in shell("user", "list", "--json").json]
    assert sorted(usernames) == sorted(f"u.{number}" for number in range(MAX_PAGE_SIZE + 5))
    owners = [row["user"] for row in shell("api-key", "list", "--json").json]
    assert sorted(owners) == sorted(usernames)


def test_database_error_is_reported_in_one_line(ada: CommandLine) -> None:
    with sqlite3.connect(ada.data / "mail.db") as connection:
        connection.execute("DROP TABLE api_keys")
    connection.close()
    result = ada("api-key", "list")
    assert (result.code, result.err) == (
        1,
        "merganser: The command failed: no such table: api_keys.\n",
    )

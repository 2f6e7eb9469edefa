"""Mail imports of many accounts of one remote server: a list, a file, and an administrator."""

from dataclasses import replace
from typing import Any

import pytest

from models.users.roles import AdminPermission
from resolvers.connectors import remote_accounts
from tests.conftest import GraphQLClient, make_client, raw_message
from tests.support.accounts.import_runs import (
    load_run,
    load_subjects_by_mailbox,
    run_due_imports,
    start_import,
    upload_content,
)
from tests.support.accounts.user_exports import error_codes_and_paths
from tests.support.accounts.user_operations import make_admin_of_domain, try_create_user
from tests.support.operations.connector_operations import (
    dovecot_account,
    shared_dovecot,
    with_server,
)
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount
from tests.support.stores.counter_check import select_rows

__all__ = ["dovecot_account", "shared_dovecot"]
SOURCE_PATH = ["source", "remoteAccounts"]
ADMINISTRATOR = {"username": "admin", "password": "correct horse"}
pytestmark = pytest.mark.usefixtures("verify_consistency", "allow_private_hosts")


@pytest.fixture
def allow_private_hosts(root: GraphQLClient) -> None:
    """Let connectors connect to private addresses."""
    options = replace(root.environment.options, connectors_allow_private_networks=True)
    object.__setattr__(root.environment, "options", options)


def accounts_source(**extra: Any) -> dict[str, Any]:
    server = {"host": "127.0.0.1", "port": 9, "security": "NONE"}
    return {"remoteAccounts": with_server({**server, **extra})}


def account(user: str, username: str | None = None, secret: str | None = None) -> dict[str, Any]:
    """A remote account of the user; with the user's name by default, and a password if given."""
    name = user if username is None else username
    return {"user": {"username": user}, "username": name, "password": secret}


async def stored_usernames(client: GraphQLClient) -> list[tuple[int, str]]:
    query = "SELECT user_id, username FROM connectors ORDER BY user_id"
    return [(user_id, name) for user_id, name in await select_rows(client.environment, query)]


async def test_each_account_is_imported_into_its_user(
    admin_client: GraphQLClient,
    ada: GraphQLClient,
    bob: GraphQLClient,
    dovecot_account: DovecotAccount,
) -> None:
    names = {client.user.id: f"moved{client.user.id}" for client in (ada, bob)}
    for client, subject in ((ada, "For Ada"), (bob, "For Bob")):
        remote_account = dovecot_account.for_user(names[client.user.id])
        remote_account.save_message(raw_message(subject))
    source = accounts_source(
        port=dovecot_account.ports["imap"],
        accounts=[
            account("bob", names[bob.user.id], PASSWORD),
            account("ada", names[ada.user.id], PASSWORD),
        ],
    )
    payload = await start_import(admin_client, source)
    assert payload["errors"] == []
    assert PASSWORD not in str(payload)
    assert len(payload["connectorRuns"]) == 2
    await run_due_imports(admin_client.environment)
    for import_run in payload["connectorRuns"]:
        assert (await load_run(admin_client, import_run["id"]))["state"] == "SUCCEEDED"
    assert await load_subjects_by_mailbox(ada) == {"INBOX": ["For Ada"]}
    assert await load_subjects_by_mailbox(bob) == {"INBOX": ["For Bob"]}
    assert await load_subjects_by_mailbox(admin_client) == {}
    query = "SELECT DISTINCT secret FROM connectors"
    assert await select_rows(admin_client.environment, query) == [("",)]


async def test_administrator_signs_in_to_all_accounts(
    admin_client: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    source = accounts_source(
        accounts=[account("ada"), account("bob", "robert")],
        administrator=ADMINISTRATOR | {"separator": "%"},
    )
    payload = await start_import(admin_client, source)
    assert (payload["errors"], len(payload["connectorRuns"])) == ([], 2)
    assert await stored_usernames(admin_client) == sorted(
        [(ada.user.id, "ada%admin"), (bob.user.id, "robert%admin")]
    )
    assert "correct horse" not in str(payload)
    log_query = "SELECT count(*) FROM audit_log WHERE mutation = 'mailImport'"
    assert await select_rows(admin_client.environment, log_query) == [(2,)]


async def test_file_has_the_accounts_and_is_consumed(
    admin_client: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    content = f"user,username,password\nada,anna,one\n{bob.address},rob,two\n".encode()
    upload_id = await upload_content(admin_client, content)
    payload = await start_import(admin_client, accounts_source(file=upload_id))
    assert (payload["errors"], len(payload["connectorRuns"])) == ([], 2)
    assert await stored_usernames(admin_client) == sorted(
        [(ada.user.id, "anna"), (bob.user.id, "rob")]
    )
    payload = await start_import(admin_client, accounts_source(file=upload_id))
    assert error_codes_and_paths(payload) == [("NOT_FOUND", [*SOURCE_PATH, "file"])]


@pytest.mark.usefixtures("ada", "bob")
async def test_wrong_accounts_are_refused_and_nothing_is_queued(
    admin_client: GraphQLClient,
) -> None:
    content = b'{"user": "ada", "username": "ada"}\n{"user": "nobody", "username": "x"}\n{"x": 1}\n'
    upload_id = await upload_content(admin_client, content)
    ada_twice = [account("ada", "ada", "x"), account("ada", "second", "y")]
    cases: list[tuple[dict[str, Any], list[tuple[str, list[str]]]]] = [
        ({}, [("VALIDATION", [])]),
        ({"accounts": [account("ada", "ada", "x")], "file": upload_id}, [("VALIDATION", [])]),
        ({"accounts": []}, [("VALIDATION", ["accounts"])]),
        ({"accounts": ada_twice}, [("VALIDATION", ["accounts", "1", "user"])]),
        (
            {"accounts": [account("ada"), account("bob", "", "x")]},
            [("VALIDATION", ["accounts", "0", "password"])],
        ),
        (
            {
                "accounts": [account("ada"), account("bob", "bob", "x")],
                "administrator": ADMINISTRATOR,
            },
            [("VALIDATION", ["accounts", "1", "password"])],
        ),
        (
            {"accounts": [account("nobody", "nobody", "x")]},
            [("NOT_FOUND", ["accounts", "0", "user"])],
        ),
        (
            {"accounts": [account("ada")], "administrator": ADMINISTRATOR | {"separator": ""}},
            [("VALIDATION", ["administrator", "separator"])],
        ),
        ({"accounts": [account("ada")], "host": "a b"}, [("VALIDATION", ["server", "host"])]),
        ({"file": upload_id}, [("NOT_FOUND", ["file"]), ("VALIDATION", ["file"])]),
    ]
    for fields, expected in cases:
        payload = await start_import(admin_client, accounts_source(**fields))
        assert payload["connectorRuns"] == []
        found = error_codes_and_paths(payload)
        assert found[: len(expected)] == [(code, SOURCE_PATH + path) for code, path in expected], (
            fields
        )
    source = accounts_source(accounts=[account("ada")], administrator=ADMINISTRATOR)
    payload = await start_import(admin_client, source, users={"usernames": ["ada"]})
    assert error_codes_and_paths(payload) == [("VALIDATION", ["users"])]
    assert await stored_usernames(admin_client) == []


@pytest.mark.usefixtures("ada", "bob")
async def test_errors_of_a_file_name_the_line(admin_client: GraphQLClient) -> None:
    content = b"user,username,password\nada,anna,\nnobody,rob,two\n"
    upload_id = await upload_content(admin_client, content)
    payload = await start_import(admin_client, accounts_source(file=upload_id))
    (error,) = payload["errors"]
    assert error["code"] == "NOT_FOUND"
    assert error["message"].startswith("Line 3, user: ")
    content = b"user,username,password\nada,anna,\nbob,rob,two\n"
    payload = await start_import(
        admin_client, accounts_source(file=await upload_content(admin_client, content))
    )
    (error,) = payload["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", [*SOURCE_PATH, "file"])
    assert error["message"].startswith("Line 2, password: ")


@pytest.mark.usefixtures("ada", "bob")
async def test_each_wrong_account_and_line_has_an_error(admin_client: GraphQLClient) -> None:
    accounts = [account("nobody", "x", "y"), account("ada", "x", "y"), account("no one", "x", "y")]
    payload = await start_import(admin_client, accounts_source(accounts=accounts))
    assert error_codes_and_paths(payload) == [
        ("NOT_FOUND", [*SOURCE_PATH, "accounts", position, "user"]) for position in ("0", "2")
    ]
    content = (
        b"\xef\xbb\xbfuser,username,password\r\n"
        b"ada,anna,one\r\n\r\n" + b"x" * 5000 + b",rob,two\r\n,rob,two\r\nbob,rob,two,three\r\n"
    )
    upload_id = await upload_content(admin_client, content)
    payload = await start_import(admin_client, accounts_source(file=upload_id))
    assert [error["message"][:12] for error in payload["errors"]] == [
        "Line 4, user", "Line 5, user", "Line 6: The ",
    ]  # fmt: skip
    assert max(len(error["message"]) for error in payload["errors"]) == 500
    for empty in (b"user,username,password\r\n", b"\xef\xbb\xbf", b"{}"[:0], b"\n\n"):
        upload_id = await upload_content(admin_client, empty)
        payload = await start_import(admin_client, accounts_source(file=upload_id))
        assert error_codes_and_paths(payload) == [("VALIDATION", [*SOURCE_PATH, "file"])]
    assert await stored_usernames(admin_client) == []


@pytest.mark.usefixtures("bob")
async def test_number_of_accounts_and_size_of_the_file_are_limited(
    admin_client: GraphQLClient, ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(ada.environment.options, bulk_max_items=1)
    object.__setattr__(ada.environment, "options", options)
    source = accounts_source(accounts=[account("ada"), account("bob")], administrator=ADMINISTRATOR)
    (error,) = (await start_import(admin_client, source))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", [*SOURCE_PATH, "accounts"])
    content = b"user,username\nada,a\nbob,b\nx,x\n"
    upload_id = await upload_content(admin_client, content)
    payload = await start_import(
        admin_client, accounts_source(file=upload_id, administrator=ADMINISTRATOR)
    )
    (error,) = payload["errors"]
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 1, 3)
    monkeypatch.setattr(remote_accounts, "MAX_FILE_SIZE", 10)
    upload_id = await upload_content(admin_client, b"user,username,password\nada,anna,one\n")
    payload = await start_import(admin_client, accounts_source(file=upload_id))
    assert error_codes_and_paths(payload) == [("VALIDATION", [*SOURCE_PATH, "file"])]


async def test_import_for_other_users_needs_rights_over_them(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient
) -> None:
    await try_create_user(root, address="eve@foreign.example", username="eve")
    content = b"user,username,password\nbob,rob,two\n"
    source = accounts_source(accounts=[account("bob", "bob", "x")])
    payload = await start_import(ada, source)
    assert error_codes_and_paths(payload) == [
        ("NOT_FOUND", [*SOURCE_PATH, "accounts", "0", "user"])
    ]
    payload = await start_import(ada, accounts_source(file=await upload_content(ada, content)))
    assert error_codes_and_paths(payload) == [("NOT_FOUND", [*SOURCE_PATH, "file"])]
    bare = await make_client(root.environment, root.http, "bare", permissions=[])
    own_source = accounts_source(accounts=[account("bare", "bare", "x")])
    assert error_codes_and_paths(await start_import(bare, own_source))[0][0] == "FORBIDDEN"
    domain_admin = await make_admin_of_domain(root, AdminPermission.CONNECTORS)
    foreign_source = accounts_source(accounts=[account("eve", "eve", "x")])
    payload = await start_import(domain_admin, foreign_source)
    assert error_codes_and_paths(payload)[0][0] == "NOT_FOUND"
    foreign_file_id = await upload_content(admin_client, content)
    payload = await start_import(domain_admin, accounts_source(file=foreign_file_id))
    assert error_codes_and_paths(payload) == [("NOT_FOUND", [*SOURCE_PATH, "file"])]
    assert await stored_usernames(root) == []
    payload = await start_import(domain_admin, source)
    assert (payload["errors"], await stored_usernames(root)) == ([], [(bob.user.id, "bob")])
    assert await load_run(ada, payload["connectorRuns"][0]["id"]) is None

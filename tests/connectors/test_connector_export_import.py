"""Connectors in account exports: all fields, and passwords only with a passphrase."""

import base64
import io
import logging
import tarfile
import zipfile
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.network.outbound_http import NetworkPolicy
from models.connectors import Connector, ConnectorRun
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import Scope
from resolvers.admin import tasks
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.transfer import FILE_FIELDS
from resolvers.transfer import passphrases
from tests.conftest import GraphQLClient, client_context, make_api_key
from tests.support.accounts.connector_exports import (
    CLIENT_SECRET,
    FULL_CONNECTOR,
    OAUTH_CONNECTOR,
    PASSPHRASE,
    PASSWORDS,
    account_record,
    cheap_key_derivation,
    create_connectors,
    load_connectors,
)
from tests.support.accounts.user_exports import (
    EXPORT_FIELDS,
    FULL_EXPORT_FORMATS,
    TASK_FIELDS,
    error_codes_and_paths,
    export_account,
    import_account,
    load_task,
)
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.operations.connector_operations import update_connector_row
from tests.support.stores.counter_check import select_rows
from tests.support.stores.stored_secrets import encoded_forms, stored_text

pytestmark = pytest.mark.usefixtures("verify_consistency", "cheap_key_derivation")
__all__ = ["cheap_key_derivation"]
DISABLED_TEXT = "The connector is inactive until a password is set."


def archive_bytes(content: bytes) -> bytes:
    """Return the bytes of an archive and of its files."""
    parts = [content]
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    elif not content.startswith(b"{"):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            parts += [file.read() for member in archive if (file := archive.extractfile(member))]
    return b"\n".join(parts)


@pytest.mark.parametrize("archive_format", FULL_EXPORT_FORMATS)
async def test_import_with_passphrase_restores_connectors(
    ada: GraphQLClient, bob: GraphQLClient, archive_format: str
) -> None:
    await create_connectors(ada)
    before = await load_connectors(ada)
    assert [row["secret"]["password"] for row in before] == list(PASSWORDS)
    assert before[1]["secret"]["client"] == CLIENT_SECRET
    content = (await export_account(ada, format=archive_format, passphrase=PASSPHRASE))["content"]
    task = await import_account(bob, content, passphrase=PASSPHRASE)
    assert (task["state"], task["result"]["refused"]) == ("SUCCEEDED", [])
    assert await load_connectors(bob) == before
    repeated = await import_account(bob, content, passphrase=PASSPHRASE)
    assert repeated["result"]["refused"] == []
    assert await load_connectors(bob) == before


def test_export_has_every_configured_column() -> None:
    columns = {column for column, _ in FILE_FIELDS.values()}
    internal_columns = {
        "id",
        "user_id",
        "secret",
        "import_options",
        "last_run_at",
        "last_success_at",
        "last_error",
        "failures",
        "next_run_at",
        "run_id",
        "lease",
        "holder",
        "created_at",
        "updated_at",
        "is_one_time",
    }
    assert columns | internal_columns == {column.name for column in select_columns(Connector)}
    assert not columns & internal_columns
    tested_columns = set(FULL_CONNECTOR) | {"oauth", "source_retention", "active"}
    assert tested_columns == columns


@pytest.mark.parametrize("passphrase", [None, "another passphrase"])
async def test_import_without_passphrase_disables_connectors(
    ada: GraphQLClient, bob: GraphQLClient, passphrase: str | None
) -> None:
    await create_connectors(ada)
    before = await load_connectors(ada)
    content = (await export_account(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    arguments = {} if passphrase is None else {"passphrase": passphrase}
    result = (await import_account(bob, content, **arguments))["result"]
    reason = (
        "The passphrase does not decrypt the password."
        if passphrase
        else "No passphrase was given."
    )
    assert result["refused"] == [
        [f"password of connector {name}", f"{reason} {DISABLED_TEXT}"]
        for name in ("Work", "Tokens")
    ]
    disabled_fields = {"active": False, "secret": {}, "due": False}
    assert await load_connectors(bob) == [{**row, **disabled_fields} for row in before]
    result = (await import_account(bob, content, passphrase=PASSPHRASE))["result"]
    assert result["refused"] == []
    assert await load_connectors(bob) == before


async def test_export_without_passphrase_has_no_passwords(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_connectors(ada)
    content = (await export_account(ada, format="JSON"))["content"]
    assert len(account_record(content)["connectors"]) == 2
    assert all("secret" not in row for row in account_record(content)["connectors"])
    assert "connectorLock" not in account_record(content)
    result = (await import_account(bob, content, passphrase=PASSPHRASE))["result"]
    assert result["refused"] == [
        [f"password of connector {name}", f"The archive contains no password. {DISABLED_TEXT}"]
        for name in ("Work", "Tokens")
    ]
    assert [row["active"] for row in await load_connectors(bob)] == [False, False]


async def test_connector_without_password_is_enabled_with_a_password(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_connectors(ada)
    await import_account(bob, (await export_account(ada, format="JSON"))["content"])
    ((connector_id,), *_) = await select_rows(
        bob.environment, "SELECT id FROM connectors WHERE user_id = :u ORDER BY id", u=bob.user.id
    )
    with pytest.raises(InvalidInput, match="An active connector requires a password"):
        await connector_mutations.update_connectors(
            client_context(bob), [connector_id], {"active": True}, None
        )
    await connector_mutations.queue_or_find_runs(
        client_context(bob), [connector_id], is_dry_run=False
    )
    assert await connector_worker.run_connector_if_due(
        bob.environment, connector_id, NetworkPolicy()
    )
    runs = select(col(ConnectorRun.stage), col(ConnectorRun.error))
    assert [tuple(row) for row in await bob.environment.database.read(runs)] == [
        ("LOGIN", "The connector has no password: set one.")
    ]
    await connector_mutations.update_connectors(
        client_context(bob), [connector_id], {"active": True}, "word"
    )
    (first_connector, _) = await load_connectors(bob)
    assert (first_connector["active"], first_connector["secret"]["password"]) == (True, "word")


@pytest.mark.parametrize("archive_format", FULL_EXPORT_FORMATS)
async def test_secrets_are_not_stored_or_logged_in_clear(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    caplog: pytest.LogCaptureFixture,
    archive_format: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    await create_connectors(ada)
    arguments: dict[str, Any] = {"format": archive_format, "passphrase": PASSPHRASE}
    arguments["options"] = {"idempotencyKey": "export"}
    payload = await execute_mutation(
        root, "userExport", EXPORT_FIELDS, user={"username": "ada"}, **arguments
    )
    assert payload["errors"] == []
    statement_text = 'SELECT CAST("order" AS TEXT) FROM tasks'
    ((order,),) = await select_rows(ada.environment, statement_text)
    assert '"passphrase"' in order
    assert PASSPHRASE not in await stored_text(ada.environment)
    content = (await export_account(ada, format=archive_format, passphrase=PASSPHRASE))["content"]
    archive = {"text": base64.b64encode(content).decode()}
    arguments = {"archive": archive, "encoding": "BASE64", "passphrase": PASSPHRASE}
    arguments["options"] = {"idempotencyKey": "import"}
    payload = await execute_mutation(
        root, "userImport", TASK_FIELDS, user={"username": "bob"}, **arguments
    )
    assert payload["errors"] == []
    assert PASSPHRASE not in await stored_text(ada.environment)
    while await tasks.run_next_task(ada.environment):
        pass
    assert (await load_task(root, payload["task"]["id"]))["result"]["refused"] == []
    assert len(await load_connectors(bob)) == 2
    for (text,) in await select_rows(ada.environment, statement_text):
        assert "passphrase" not in text
    log_rows = await select_rows(
        ada.environment, "SELECT mutation, CAST(after AS TEXT) FROM audit_log ORDER BY id"
    )
    assert [row[0] for row in log_rows][-2:] == ["userExport", "userImport"]
    text_of_store, bytes_of_archive = await stored_text(ada.environment), archive_bytes(content)
    for secret in (PASSPHRASE, *PASSWORDS, CLIENT_SECRET):
        for encoded in encoded_forms(secret):
            assert encoded.encode() not in bytes_of_archive, encoded
            assert encoded not in repr(log_rows)
            assert encoded not in caplog.text
            assert encoded not in text_of_store, encoded


async def test_failed_or_cancelled_task_forgets_its_passphrase(ada: GraphQLClient) -> None:
    statement_text = 'SELECT state, CAST("order" AS TEXT) FROM tasks ORDER BY id'
    payload = await execute_mutation(ada, "userExport", EXPORT_FIELDS, passphrase=PASSPHRASE)
    assert "passphrase" in (await select_rows(ada.environment, statement_text))[0][1]
    cancel = "mutation ($id: ID!) { taskCancel(input: {tasks: [{id: $id}]}) { errors { code } } }"
    await ada(cancel, id=payload["userExport"]["task"]["id"])
    damaged = {"text": '{"kind": "account", "format": "merganser", "version": 1}\n{"kind": "x"\n'}
    await execute_mutation(ada, "userImport", TASK_FIELDS, archive=damaged, passphrase=PASSPHRASE)
    while await tasks.run_next_task(ada.environment):
        pass
    task_rows = await select_rows(ada.environment, statement_text)
    assert [state for state, _ in task_rows] == ["CANCELLED", "FAILED"]
    assert not [order for _, order in task_rows if "passphrase" in order]


async def test_task_fails_if_its_passphrase_cannot_be_decrypted(
    ada: GraphQLClient, environment: Environment
) -> None:
    await create_connectors(ada)
    payload = await execute_mutation(ada, "userExport", EXPORT_FIELDS, passphrase=PASSPHRASE)
    other_environment = replace(environment, secret_box=type(environment.secret_box).with_new_key())
    while await tasks.run_next_task(other_environment):
        pass
    task = await load_task(ada, payload["userExport"]["task"]["id"])
    assert (task["state"], task["error"]) == (
        "FAILED", "The passphrase can't be decrypted any more: start the task again."
    )  # fmt: skip


# for each case: the arguments, and the code of the error
INVALID_PASSPHRASES: list[tuple[dict[str, Any], str]] = [
    ({"passphrase": ""}, "INVALID"),
    ({"passphrase": "x" * 11}, "INVALID"),
    ({"passphrase": "x" * 1025}, "INVALID"),
    ({"passphrase": PASSPHRASE, "format": "MBOX"}, "INVALID"),
    ({"passphrase": PASSPHRASE, "includeSettings": False}, "INVALID"),
]


async def test_invalid_passphrase_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_PASSPHRASES):
        with case as (arguments, code):
            payload = await execute_mutation(ada, "userExport", EXPORT_FIELDS, **arguments)
            assert [error["path"] for error in payload["errors"]] == [["passphrase"]], code
            if "format" not in arguments:
                archive = {"text": "From a@b.example Tue Jan  6 10:00:00 2026\n\nx\n"}
                payload = await execute_mutation(
                    ada, "userImport", TASK_FIELDS, archive=archive, **arguments
                )
                assert [error["path"] for error in payload["errors"]] == [["passphrase"]]
            assert await select_rows(ada.environment, "SELECT id FROM tasks") == []
            assert passphrases.validate_passphrase("ä" * 12) == "ä" * 12
            assert passphrases.validate_passphrase("x" * 1024)


async def test_passphrase_needs_the_settings_scope(
    ada: GraphQLClient, http: httpx.AsyncClient
) -> None:
    scopes = [Scope.MAIL, Scope.MAIL_READ, Scope.READ]
    secret = await make_api_key(ada.environment, "mail", user_id=ada.user.id, scopes=scopes)
    mail_client = GraphQLClient(http, ada.environment, ada.user, secret)
    assert (await execute_mutation(mail_client, "userExport", EXPORT_FIELDS))["errors"] == []
    payload = await execute_mutation(
        mail_client, "userExport", EXPORT_FIELDS, passphrase=PASSPHRASE
    )
    assert error_codes_and_paths(payload)[0][0] == "FORBIDDEN"
    archive = {"text": "From a@b.example Tue Jan  6 10:00:00 2026\n\nx\n"}
    payload = await execute_mutation(
        mail_client, "userImport", TASK_FIELDS, archive=archive, passphrase=PASSPHRASE
    )
    assert error_codes_and_paths(payload)[0][0] == "FORBIDDEN"


async def test_one_time_import_is_not_exported(ada: GraphQLClient) -> None:
    connector_id = await connector_mutations.create_connector(
        client_context(ada), None, {**OAUTH_CONNECTOR, "active": False}, "word"
    )
    await update_connector_row(ada.environment, connector_id, is_one_time=True)
    content = (await export_account(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    assert account_record(content)["connectors"] == []

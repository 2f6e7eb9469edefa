"""Connectors in accounts as files: whole, and their passwords only behind a passphrase."""

import base64
import io
import json
import logging
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.archives.secret_encryption import KEY_DERIVATION, ArchiveCipher, ArchiveDecryptionError
from mail.network.outbound_http import NetworkPolicy
from models.connectors import Connector, ConnectorProtocol, ConnectorRun, ConnectorSecurity
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import Scope
from resolvers.admin import tasks
from resolvers.connectors import credentials
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import worker as connector_worker
from resolvers.connectors.options import OptionName
from resolvers.connectors.transfer import FILE_FIELDS
from resolvers.transfer import passphrases
from tests.conftest import Client, context, make_key
from tests.support.accounts.account_exports import (
    EXPORT,
    FULL,
    TASK,
    codes,
    ended,
    exported,
    imported,
)
from tests.support.accounts.user_operations import run
from tests.support.operations.connector_operations import changed
from tests.support.stores.counter_check import rows
from tests.support.stores.stored_secrets import encoded_forms, stored_text

pytestmark = pytest.mark.usefixtures("examined")

PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of tests
WORDS = ("pw-of-the-far-account", "refresh-token-xyzzy")
CLIENT = "secret-of-our-client"
OFF = "it is switched off until one is set"
EVERYTHING: dict[str, Any] = {  # and nothing as it is by default
    "name": "Work",
    "protocol": ConnectorProtocol.IMAP,
    "host": "imap.example.net",
    "port": 1993,
    "security": ConnectorSecurity.STARTTLS,
    "mechanism": "LOGIN",
    "username": "ada@example.net",
    "target_domain": "example.org",
    "target_folder": "Old/Work",
    "interval": timedelta(hours=3),
    "max_age": timedelta(days=99),
    "max_bytes_per_second": 5 << 30,
    "exclude": "Spam|Junk",
    "folder_rewrites": [{"pattern": "^A/(.*)", "replacement": "B/$1"}],
    "auto_map_folders": False,
    "subscribe_all": False,
    "skip_cross_duplicates": True,
    "remove_duplicates": False,
    "mirror_deletes": True,
    "remote_timeout": timedelta(seconds=77),
    "local_timeout": timedelta(seconds=88),
    "custom_options": [{"name": OptionName.MIN_AGE, "value": "P1D"}],
    "spam_check": False,
    "virus_check": False,
    "apply_filters": True,
}
TOKENS: dict[str, Any] = {
    "name": "Tokens",
    "protocol": ConnectorProtocol.IMAP,
    "host": "mail.example.com",
    "security": ConnectorSecurity.TLS,
    "mechanism": "XOAUTH2",
    "username": "ada",
    "interval": None,
    "source_retention": timedelta(0),
    "oauth": {
        "token_url": "https://login.example.com/token",
        "client_id": "merganser",
        "client_secret": CLIENT,
        "scope": "mail",
    },
}


async def furnish(client: Client) -> None:
    for given, word in zip((EVERYTHING, TOKENS), WORDS, strict=True):
        await connector_mutations.create_connector(context(client), None, given, word)


async def told(client: Client) -> list[dict[str, Any]]:
    """The connectors of an account, opened: all but keys and times."""
    asked = select(*select_columns(Connector)).where(col(Connector.user_id) == client.user.id)
    found = []
    for row in await client.world.database.read(asked.order_by(col(Connector.id))):
        facts = {column: getattr(row, column) for column, _ in FILE_FIELDS.values()}
        secret = credentials.open_secret(client.world, row.id, row.secret)
        found.append({**facts, "secret": secret, "due": row.next_run_at is not None})
    return found


def unpacked(content: bytes) -> bytes:
    """All bytes of an archive, as they are and as they come out of it."""
    parts = [content]
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    elif not content.startswith(b"{"):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            parts += [file.read() for one in archive if (file := archive.extractfile(one))]
    return b"\n".join(parts)


def record(content: bytes) -> dict[str, Any]:
    """What lines of JSON say of the account."""
    found: dict[str, Any] = json.loads(content.splitlines()[0])
    return found


def rewritten(content: bytes, **changes: Any) -> bytes:
    """The same, and other words about the account."""
    first, *rest = content.splitlines(keepends=True)
    return b"".join([json.dumps({**json.loads(first), **changes}).encode(), b"\n", *rest])


@pytest.mark.parametrize("kind", FULL)
async def test_connectors_come_back_whole_with_the_passphrase(
    ada: Client, bob: Client, kind: str
) -> None:
    await furnish(ada)
    before = await told(ada)
    assert [one["secret"]["password"] for one in before] == list(WORDS)
    assert before[1]["secret"]["client"] == CLIENT
    content = (await exported(ada, format=kind, passphrase=PASSPHRASE))["content"]
    task = await imported(bob, content, passphrase=PASSPHRASE)
    assert (task["state"], task["result"]["refused"]) == ("SUCCEEDED", [])
    assert await told(bob) == before
    again = await imported(bob, content, passphrase=PASSPHRASE)
    assert again["result"]["refused"] == []
    assert await told(bob) == before


def test_the_file_has_every_column_that_one_sets() -> None:
    columns = {column for column, _ in FILE_FIELDS.values()}
    ours = {"id", "user_id", "secret", "bringing", "last_run_at", "last_success_at", "last_error",
            "failures", "next_run_at", "run_id", "lease", "holder", "created_at",
            "updated_at", "once"}  # fmt: skip
    assert columns | ours == {column.name for column in select_columns(Connector)}
    assert not columns & ours
    whole = set(EVERYTHING) | {"oauth", "source_retention", "active"}
    assert whole == columns


@pytest.mark.parametrize("given", [None, "another passphrase"])
async def test_without_the_passphrase_they_come_switched_off(
    ada: Client, bob: Client, given: str | None
) -> None:
    await furnish(ada)
    before = await told(ada)
    content = (await exported(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    more = {} if given is None else {"passphrase": given}
    result = (await imported(bob, content, **more))["result"]
    why = "the passphrase does not open it" if given else "no passphrase was given"
    assert result["refused"] == [
        [f"password of connector {name}", f"{why}: {OFF}"] for name in ("Work", "Tokens")
    ]
    off = {"active": False, "secret": {}, "due": False}
    assert await told(bob) == [{**one, **off} for one in before]
    result = (await imported(bob, content, passphrase=PASSPHRASE))["result"]
    assert result["refused"] == []
    assert await told(bob) == before


async def test_an_export_without_a_passphrase_has_no_passwords(ada: Client, bob: Client) -> None:
    await furnish(ada)
    content = (await exported(ada, format="JSON"))["content"]
    assert len(record(content)["connectors"]) == 2
    assert all("secret" not in one for one in record(content)["connectors"])
    assert "connectorLock" not in record(content)
    result = (await imported(bob, content, passphrase=PASSPHRASE))["result"]
    assert result["refused"] == [
        [f"password of connector {name}", f"the archive has none: {OFF}"]
        for name in ("Work", "Tokens")
    ]
    assert [one["active"] for one in await told(bob)] == [False, False]


async def test_one_without_a_password_is_switched_on_with_one(ada: Client, bob: Client) -> None:
    await furnish(ada)
    await imported(bob, (await exported(ada, format="JSON"))["content"])
    ((key,), *_) = await rows(
        bob.world, "SELECT id FROM connectors WHERE user_id = :u ORDER BY id", u=bob.user.id
    )
    with pytest.raises(InvalidInput, match="it has no password"):
        await connector_mutations.update_connectors(context(bob), [key], {"active": True}, None)
    await connector_mutations.start_runs(context(bob), [key], is_trial=False)
    assert await connector_worker.run_single_connector(bob.world, key, NetworkPolicy())
    runs = select(col(ConnectorRun.stage), col(ConnectorRun.error))
    assert [tuple(row) for row in await bob.world.database.read(runs)] == [
        ("LOGIN", "it has no password: set one")
    ]
    await connector_mutations.update_connectors(context(bob), [key], {"active": True}, "word")
    (first, _) = await told(bob)
    assert (first["active"], first["secret"]["password"]) == (True, "word")


# nothing in clear


@pytest.mark.parametrize("kind", FULL)
async def test_no_secret_is_left_in_clear_anywhere(
    ada: Client, bob: Client, root: Client, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    await furnish(ada)
    given: dict[str, Any] = {"format": kind, "passphrase": PASSPHRASE}
    given["options"] = {"idempotencyKey": "export"}
    done = await run(root, "accountExport", EXPORT, user={"username": "ada"}, **given)
    assert done["errors"] == []
    waiting = 'SELECT CAST("order" AS TEXT) FROM tasks'
    ((order,),) = await rows(ada.world, waiting)
    assert '"passphrase"' in order
    assert PASSPHRASE not in await stored_text(ada.world)
    content = (await exported(ada, format=kind, passphrase=PASSPHRASE))["content"]
    archive = {"text": base64.b64encode(content).decode()}
    given = {"archive": archive, "encoding": "BASE64", "passphrase": PASSPHRASE}
    given["options"] = {"idempotencyKey": "import"}
    done = await run(root, "accountImport", TASK, user={"username": "bob"}, **given)
    assert done["errors"] == []
    assert PASSPHRASE not in await stored_text(ada.world)
    while await tasks.run_next_task(ada.world):
        pass
    assert (await ended(root, done["task"]["id"]))["result"]["refused"] == []
    assert len(await told(bob)) == 2
    for (text,) in await rows(ada.world, waiting):
        assert "passphrase" not in text
    noted = await rows(ada.world, "SELECT mutation, CAST(after AS TEXT) FROM admin_log ORDER BY id")
    assert [row[0] for row in noted][-2:] == ["accountExport", "accountImport"]
    for secret in (PASSPHRASE, *WORDS, CLIENT):
        for form in encoded_forms(secret):
            assert form.encode() not in unpacked(content), form
            assert form not in repr(noted)
            assert form not in caplog.text
            assert form not in await stored_text(ada.world), form


async def test_a_passphrase_goes_with_a_task_that_fails_or_is_cancelled(ada: Client) -> None:
    kept = 'SELECT state, CAST("order" AS TEXT) FROM tasks ORDER BY id'
    done = await run(ada, "accountExport", EXPORT, passphrase=PASSPHRASE)
    assert "passphrase" in (await rows(ada.world, kept))[0][1]
    cancel = "mutation ($ids: [ID!]!) { taskCancel(input: {ids: $ids}) { errors { code } } }"
    await ada(cancel, ids=[done["export"]["task"]["id"]])
    damaged = {"text": '{"kind": "account", "format": "merganser", "version": 1}\n{"kind": "x"\n'}
    await run(ada, "accountImport", TASK, archive=damaged, passphrase=PASSPHRASE)
    while await tasks.run_next_task(ada.world):
        pass
    found = await rows(ada.world, kept)
    assert [state for state, _ in found] == ["CANCELLED", "FAILED"]
    assert not [order for _, order in found if "passphrase" in order]


async def test_of_a_task_whose_vault_has_lost_the_key_nothing_comes(
    ada: Client, world: Environment
) -> None:
    await furnish(ada)
    done = await run(ada, "accountExport", EXPORT, passphrase=PASSPHRASE)
    other = replace(world, secret_box=type(world.secret_box).with_new_key())
    while await tasks.run_next_task(other):
        pass
    task = await ended(ada, done["export"]["task"]["id"])
    assert (task["state"], task["error"]) == (
        "FAILED", "it cannot be opened any more: begin anew"
    )  # fmt: skip


# who may, and what cannot be


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"passphrase": ""}, "INVALID"),
        ({"passphrase": "x" * 11}, "INVALID"),
        ({"passphrase": "x" * 1025}, "INVALID"),
        ({"passphrase": PASSPHRASE, "format": "MBOX"}, "INVALID"),
        ({"passphrase": PASSPHRASE, "includeSettings": False}, "INVALID"),
    ],
)
async def test_a_passphrase_that_cannot_be(ada: Client, given: dict[str, Any], code: str) -> None:
    done = await run(ada, "accountExport", EXPORT, **given)
    assert [error["path"] for error in done["errors"]] == [["passphrase"]], code
    if "format" not in given:
        archive = {"text": "From a@b.example Tue Jan  6 10:00:00 2026\n\nx\n"}
        done = await run(ada, "accountImport", TASK, archive=archive, **given)
        assert [error["path"] for error in done["errors"]] == [["passphrase"]]
    assert await rows(ada.world, "SELECT id FROM tasks") == []
    assert passphrases.validate_passphrase("ä" * 12) == "ä" * 12
    assert passphrases.validate_passphrase("x" * 1024)


async def test_passwords_need_the_scope_of_settings(ada: Client, http: httpx.AsyncClient) -> None:
    scopes = [Scope.MAIL, Scope.MAIL_READ, Scope.READ]
    secret = await make_key(ada.world, "mail", user_id=ada.user.id, scopes=scopes)
    some = Client(http, ada.world, ada.user, secret)
    assert (await run(some, "accountExport", EXPORT))["errors"] == []
    done = await run(some, "accountExport", EXPORT, passphrase=PASSPHRASE)
    assert codes(done)[0][0] == "FORBIDDEN"
    archive = {"text": "From a@b.example Tue Jan  6 10:00:00 2026\n\nx\n"}
    done = await run(some, "accountImport", TASK, archive=archive, passphrase=PASSPHRASE)
    assert codes(done)[0][0] == "FORBIDDEN"


async def test_who_may_have_no_connectors_gets_none(ada: Client, bob: Client, root: Client) -> None:
    await furnish(ada)
    content = (await exported(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    given = {"users": {"usernames": ["bob"]}, "permissions": []}
    done = await run(root, "userPermissionsSet", "users { id }", **given)
    assert done["errors"] == []
    result = (await imported(bob, content, passphrase=PASSPHRASE))["result"]
    needed = ["connector Work", "this needs the permission SYNCJOBS"]
    assert [one for one in result["refused"] if "connector" in one[0]] == [needed]
    assert await told(bob) == []


async def test_a_password_does_not_open_for_another_server(ada: Client, bob: Client) -> None:
    await furnish(ada)
    content = (await exported(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    first, second = record(content)["connectors"]
    for change in (
        {"host": "evil.example.org"},
        {"port": 143},
        {"security": "TLS"},
        {"username": "eve"},
        {"authMechanism": "PLAIN"},
        {"secret": second["secret"]},
    ):
        odd = rewritten(content, connectors=[{**first, **change}])
        result = (await imported(bob, odd, passphrase=PASSPHRASE))["result"]
        assert result["refused"][0][0] == "password of connector Work", change
    tokens = {**second["oauth"], "tokenUrl": "https://evil.example.org/"}
    odd = rewritten(content, connectors=[{**second, "oauth": tokens}])
    assert len((await imported(bob, odd, passphrase=PASSPHRASE))["result"]["refused"]) == 1
    assert not [one for one in await told(bob) if one["active"] or one["secret"]]


async def test_the_lock_of_a_stranger_costs_nothing(ada: Client, bob: Client) -> None:
    await furnish(ada)
    content = (await exported(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    lock: Mapping[str, Any] = record(content)["connectorLock"]
    changes: tuple[dict[str, Any], ...] = ({"n": 1 << 30}, {"salt": "AAAA"}, {"salt": 1},
                                           {"kdf": "none"}, {"r": 1 << 20})  # fmt: skip
    for change in changes:
        odd = rewritten(content, connectorLock={**lock, **change})
        result = (await imported(bob, odd, passphrase=PASSPHRASE))["result"]
        assert len(result["refused"]) == 2, change
    broken = await imported(bob, rewritten(content, connectorLock=[1]), passphrase=PASSPHRASE)
    assert broken["state"] == "FAILED"


FOREIGN: list[dict[str, Any]] = [
    {"host": None},
    {"host": 7},
    {"host": "127.0.0.1"},
    {"host": "mail.internal"},
    {"protocol": "SMTP"},
    {"protocol": "USER"},
    {"security": "PLAIN"},
    {"security": "NONE"},
    {"port": "993"},
    {"port": True},
    {"port": 1 << 20},
    {"interval": 1},
    {"interval": -1},
    {"interval": 1e9},
    {"maxAge": 1 << 39},
    {"maxBytesPerSecond": 1 << 70},
    {"mirrorDeletes": "yes"},
    {"exclude": "("},
    {"authMechanism": "NTLM"},
    {"oauth": {"tokenUrl": "https://x.example/", "clientId": "c"}},
    {"oauth": {"tokenUrl": 1, "clientId": "c"}},
    {"oauth": "x"},
    {"folderRewrites": ["x"]},
    {"folderRewrites": [{"pattern": "x"}]},
    {"customOptions": [{"name": "RUN", "value": "rm"}]},
    {"customOptions": [{"name": ["DRY"]}]},
    {"customOptions": {}},
    {"targetFolder": "a//b"},
    {"username": ""},
    {"active": 1},
]


async def test_connectors_of_files_are_checked(ada: Client, bob: Client) -> None:
    await furnish(ada)
    content = (await exported(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    first = record(content)["connectors"][0]
    odd = rewritten(content, connectors=[{**first, **change} for change in FOREIGN])
    task = await imported(bob, odd, passphrase=PASSPHRASE)
    assert task["state"] == "SUCCEEDED"
    assert [what for what, _ in task["result"]["refused"]] == ["connector Work"] * len(FOREIGN)
    assert await told(bob) == []


async def test_of_too_many_the_first_come(ada: Client, bob: Client) -> None:
    await furnish(ada)
    content = (await exported(ada, format="JSON"))["content"]
    first = record(content)["connectors"][0]
    many = [{**first, "name": f"c{nth}", "username": f"u{nth}"} for nth in range(60)]
    result = (await imported(bob, rewritten(content, connectors=many)))["result"]
    assert len(await told(bob)) == connector_mutations.MAX_CONNECTORS
    assert result["refused"][-1] == ["connector c50", "at most 50 connectors"]
    assert len(result["refused"]) == connector_mutations.MAX_CONNECTORS + 1


async def test_single_imports_are_not_carried(ada: Client) -> None:
    key = await connector_mutations.create_connector(
        context(ada), None, {**TOKENS, "active": False}, "word"
    )
    await changed(ada.world, key, once=True)
    content = (await exported(ada, format="JSON", passphrase=PASSPHRASE))["content"]
    assert record(content)["connectors"] == []


def test_a_lock_opens_what_it_has_sealed_and_no_other() -> None:
    lock = ArchiveCipher.for_new_archive("Grüße und so")
    assert lock.derivation_record() == {**KEY_DERIVATION, "salt": lock.derivation_record()["salt"]}
    sealed = lock.encrypt("word", b"here")
    again = ArchiveCipher.from_record(
        lock.derivation_record(), "Gru\u0308\u00dfe und so"
    )  # as another keyboard has it
    assert again.decrypt(sealed, b"here") == "word"
    assert lock.encrypt("word", b"here") != sealed
    for other, place, text in (
        (again, b"there", sealed),
        (ArchiveCipher.from_record(lock.derivation_record(), "Grüße und So"), b"here", sealed),
        (ArchiveCipher.for_new_archive("Grüße und so"), b"here", sealed),
        (again, b"here", sealed[:-8]),
        (again, b"here", ""),
        (again, b"here", None),
    ):
        with pytest.raises(ArchiveDecryptionError):
            other.decrypt(text, place)
    assert "key" not in repr(lock)

"""Test that received messages are encrypted to the key of the account, or not stored."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pysequoia
import pytest
from sqlalchemy import update

from graph.types import global_ids
from mail.delivery import local_delivery
from mail.delivery.listener_backend import LocalBackend
from mail.envelope.delivery_jobs import DeliveryJob, JobRecipient
from mail.mime.header_encoding import NamedAddress
from mail.recipients import address_resolution
from mail.search import index_worker
from mail.storage.blobs.compression import content_digest
from mail.storage.message_content import read_all
from models.errors import ServiceUnavailable
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.create import create_mailboxes as make
from resolvers.messages import content
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import GraphQLClient, ManualClock, client_context, raw_message
from tests.support.accounts.account_rows import message_with_subject
from tests.support.accounts.openpgp_keys import armored_public_key, decrypt_message, make_secret_key
from tests.support.accounts.shared_mailboxes import mailbox_global_id, share_mailbox
from tests.support.accounts.user_operations import (
    execute_mutation,
    load_journal_changes,
    try_create_user,
    try_update_users,
)
from tests.support.mail.trace_header_lines import without_trace_fields
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.queue_worker import load_submission_blob_id
from tests.support.operations.bulk_operations import run_message_mutation
from tests.support.operations.message_pages import find_subjects
from tests.support.stores.counter_check import load_stream_position, select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")

BODY_TEXT = "herons at dawn"
PLAIN_MESSAGE = raw_message("Plain", body=BODY_TEXT)
LARGE_MESSAGE = message_with_subject("Large", attachment_size=150_000)
ENCRYPTED_MESSAGES = {
    "pgp": raw_message(
        "PGP", body="--b\r\n\r\nx\r\n--b--", MIME_Version="1.0", Content_Type=
        'multipart/encrypted; protocol="application/pgp-encrypted"; boundary=b',
    ),
    "smime": raw_message(
        "CMS", body="AAAA", MIME_Version="1.0", Content_Transfer_Encoding="base64",
        Content_Type="application/pkcs7-mime; smime-type=enveloped-data; name=smime.p7m",
    ),
}  # fmt: skip


@dataclass
class OpenPgpAccount:
    """An account with its own OpenPGP key."""

    client: GraphQLClient
    key_pair: pysequoia.Tsk

    async def decrypt(self, message_id: int) -> bytes:
        return decrypt_message(await load_source(self.client, message_id), self.key_pair)


@pytest.fixture
async def pgp_account(ada: GraphQLClient, clock: ManualClock) -> OpenPgpAccount:
    """Ada with a key that is valid for a month and encrypts all mail."""
    validity = int((clock() - datetime.now(UTC)).total_seconds()) + 30 * 86_400
    key_pair = make_secret_key("Ada <ada@example.org>", seconds=validity)
    assert (
        await try_update_users(
            ada, openpgpPublicKey=armored_public_key(key_pair), encryptMessages=True
        )
    )[1] == []
    return OpenPgpAccount(ada, key_pair)


async def load_source(client: GraphQLClient, message_id: int) -> bytes:
    message = await content.load_stored_message(client_context(client), message_id)
    assert message is not None
    return await read_all(message.stream_raw())


async def deliver_locally(
    environment: Environment, raw: bytes | Path, *clients: GraphQLClient
) -> list[Any]:
    backend = LocalBackend(environment)
    recipients = [
        await backend.accept_recipient(client.address, "carol@example.com") for client in clients
    ]
    return list(await backend.deliver(raw, recipients, "carol@example.com"))


async def count_messages(client: GraphQLClient) -> int:
    sql = "SELECT id FROM messages WHERE user_id = :u"
    return len(await select_rows(client.environment, sql, u=client.user.id))


def encryptable_part(raw: bytes) -> bytes:
    """Return the part that is encrypted: content header fields, an empty line, the body."""
    if raw.startswith(b"\r\n"):
        return raw
    header, _, body = raw.partition(b"\r\n\r\n")
    fields = [line for line in header.split(b"\r\n") if line.lower().startswith(b"content-")]
    return b"".join(line + b"\r\n" for line in fields) + b"\r\n" + body


@pytest.mark.parametrize(
    "raw",
    [
        PLAIN_MESSAGE,
        LARGE_MESSAGE,
        raw_message("ISO", body="x", Content_Type="text/html", content_language="de"),
        b"\r\n" + BODY_TEXT.encode() + b"\r\n",
        raw_message("Bare", body="\xff\0 odd \n.\r ends"),
    ],
)
async def test_received_message_is_encrypted_and_decrypts_to_same_content(
    pgp_account: OpenPgpAccount, raw: bytes
) -> None:
    (inserted,) = await deliver_locally(pgp_account.client.environment, raw, pgp_account.client)
    stored = without_trace_fields(await load_source(pgp_account.client, inserted.message_id))
    assert await pgp_account.decrypt(inserted.message_id) == encryptable_part(raw)
    if raw.startswith(b"From"):
        outer_header = stored.partition(b"\r\nMIME-Version")[0]
        assert outer_header.split(b"\r\n") == [
            line
            for line in raw.partition(b"\r\n\r\n")[0].split(b"\r\n")
            if not line.lower().startswith((b"content-", b"mime-version"))
        ]


async def test_folded_header_fields_and_lf_line_ends_are_encrypted(
    pgp_account: OpenPgpAccount,
) -> None:
    raw = (
        b"Subject: one\n two\nContent-Type: text/plain;\n charset=utf-8\nMIME-Version: 1.0\n"
        b"X-Last: x\n\nbody\n"
    )
    (inserted,) = await deliver_locally(pgp_account.client.environment, raw, pgp_account.client)
    expected = b"Content-Type: text/plain;\r\n charset=utf-8\r\n\r\nbody\n"
    assert await pgp_account.decrypt(inserted.message_id) == expected
    stored = without_trace_fields(await load_source(pgp_account.client, inserted.message_id))
    assert stored.startswith(b"Subject: one\r\n two\r\nX-Last: x\r\nMIME-Version: 1.0\r\n")


async def test_large_message_from_file_is_encrypted(
    pgp_account: OpenPgpAccount, tmp_path: Path
) -> None:
    path = tmp_path / "letter"
    await asyncio.to_thread(path.write_bytes, LARGE_MESSAGE)
    (inserted,) = await deliver_locally(pgp_account.client.environment, path, pgp_account.client)
    assert await pgp_account.decrypt(inserted.message_id) == encryptable_part(LARGE_MESSAGE)


@pytest.mark.parametrize("kind", ENCRYPTED_MESSAGES)
async def test_encrypted_message_is_stored_unchanged(
    pgp_account: OpenPgpAccount, kind: str
) -> None:
    (inserted,) = await deliver_locally(
        pgp_account.client.environment, ENCRYPTED_MESSAGES[kind], pgp_account.client
    )
    assert (
        without_trace_fields(await load_source(pgp_account.client, inserted.message_id))
        == ENCRYPTED_MESSAGES[kind]
    )


async def test_message_is_encrypted_only_for_recipients_who_want_it(
    pgp_account: OpenPgpAccount, bob: GraphQLClient, environment: Environment
) -> None:
    key_pair = make_secret_key("Bob")
    assert (await try_update_users(bob, openpgpPublicKey=armored_public_key(key_pair)))[1] == []
    ada_message, bob_message = await deliver_locally(
        environment, PLAIN_MESSAGE, pgp_account.client, bob
    )
    assert await pgp_account.decrypt(ada_message.message_id) == encryptable_part(PLAIN_MESSAGE)
    assert without_trace_fields(await load_source(bob, bob_message.message_id)) == PLAIN_MESSAGE
    arguments = {"mailboxes": [{"path": "INBOX"}], "set": {"encryptMessages": True}}
    assert (await execute_mutation(bob, "mailboxUpdate", "tasks { id }", **arguments))[
        "errors"
    ] == []
    ada_large, bob_large = await deliver_locally(
        environment, LARGE_MESSAGE, pgp_account.client, bob
    )
    assert decrypt_message(
        await load_source(bob, bob_large.message_id), key_pair
    ) == encryptable_part(LARGE_MESSAGE)
    assert await pgp_account.decrypt(ada_large.message_id) == encryptable_part(LARGE_MESSAGE)


async def test_repeated_delivery_is_recognized_despite_encryption(
    pgp_account: OpenPgpAccount, environment: Environment
) -> None:
    (first,) = await deliver_locally(environment, PLAIN_MESSAGE, pgp_account.client)
    (second,) = await deliver_locally(environment, PLAIN_MESSAGE, pgp_account.client)
    assert (first.message_id, await count_messages(pgp_account.client)) == (second.message_id, 1)


async def test_encryption_needs_no_extra_statement(
    pgp_account: OpenPgpAccount, bob: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    async def count_statements(client: GraphQLClient) -> int:
        await address_resolution.load_recipient_below_limits(environment, client.address)
        del statements[:]
        await address_resolution.load_recipient_below_limits(environment, client.address)
        return len(statements)

    assert await count_statements(pgp_account.client) == await count_statements(bob) > 0


async def test_expired_key_refuses_delivery(
    pgp_account: OpenPgpAccount,
    bob: GraphQLClient,
    lmtp_client: SmtpTestClient,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await deliver_locally(pgp_account.client.environment, PLAIN_MESSAGE, pgp_account.client)
    clock.tick(days=31)
    caplog.set_level(logging.DEBUG)
    await lmtp_client.start_data(pgp_account.client.address, bob.address)
    lmtp_client.send_bytes(raw_message("Late", body=BODY_TEXT) + b".\r\n")
    replies = [(await lmtp_client.read_reply())[:9] for _ in range(2)]
    assert replies == ["451 4.3.0", "250 2.0.0"]
    assert (await count_messages(pgp_account.client), await count_messages(bob)) == (1, 1)
    assert any("Message not encrypted" in record.getMessage() for record in caplog.records)
    assert BODY_TEXT not in caplog.text


@pytest.mark.parametrize("key", [None, "-----BEGIN PGP PUBLIC KEY BLOCK-----", ""])
async def test_unusable_key_refuses_every_message(
    pgp_account: OpenPgpAccount, key: str | None
) -> None:
    environment = pgp_account.client.environment
    async with environment.write_session() as session:
        await session.exec(update(User).values(openpgp_public_key=key))
    (delivered,) = await deliver_locally(environment, PLAIN_MESSAGE, pgp_account.client)
    assert isinstance(delivered, ServiceUnavailable)
    recipient = JobRecipient(
        1, pgp_account.client.address, 1, environment.now() + timedelta(days=5)
    )
    job = DeliveryJob(
        1, 2, "q", 3, 4, 5, "bob@example.org", "example.org", environment.now(), [recipient]
    )
    assert (await local_delivery.deliver_to_local_recipients(environment, job, PLAIN_MESSAGE))[
        1
    ].reply_code == 451
    answer = await run_message_mutation(
        pgp_account.client, "messageImport", mailbox={"path": "INBOX"}, raw=PLAIN_MESSAGE.decode()
    )
    assert [error["code"] for error in answer["errors"]] == ["UNAVAILABLE"]
    assert await count_messages(pgp_account.client) == 0


async def test_local_delivery_is_encrypted(
    pgp_account: OpenPgpAccount, environment: Environment
) -> None:
    recipient = JobRecipient(
        1, pgp_account.client.address, 1, environment.now() + timedelta(days=5)
    )
    job = DeliveryJob(
        1, 2, "q", 3, 4, 5, "bob@example.org", "example.org", environment.now(), [recipient]
    )
    assert (await local_delivery.deliver_to_local_recipients(environment, job, PLAIN_MESSAGE))[
        1
    ].reply_code == 250
    ((message_id,),) = await select_rows(environment, "SELECT id FROM messages")
    assert await pgp_account.decrypt(message_id) == encryptable_part(PLAIN_MESSAGE)


async def test_uploaded_message_is_encrypted_except_draft(
    pgp_account: OpenPgpAccount, bob: GraphQLClient
) -> None:
    arguments = {"mailbox": {"path": "INBOX"}, "raw": PLAIN_MESSAGE.decode()}
    answer = await run_message_mutation(pgp_account.client, "messageImport", **arguments)
    assert answer["errors"] == []
    assert await pgp_account.decrypt(
        global_ids.decode("Message", answer["messages"][0]["id"])
    ) == encryptable_part(PLAIN_MESSAGE)
    answer = await run_message_mutation(
        pgp_account.client, "messageImport", **arguments, draft=True
    )
    assert answer["messages"][0]["rawSource"].encode() == PLAIN_MESSAGE
    mailbox_id = mailbox_global_id((await pgp_account.client.load_mailbox()).id)
    response = await pgp_account.client.http.post(
        f"/rest/mailboxes/{mailbox_id}/messages",
        content=LARGE_MESSAGE,
        headers={**pgp_account.client.headers, "content-type": "message/rfc822"},
    )
    assert await pgp_account.decrypt(
        global_ids.decode("Message", response.json()["id"])
    ) == encryptable_part(LARGE_MESSAGE)
    answer = await run_message_mutation(bob, "messageImport", **arguments)
    assert answer["messages"][0]["rawSource"].encode() == PLAIN_MESSAGE


async def test_upload_to_several_users_is_encrypted_per_user(
    pgp_account: OpenPgpAccount, bob: GraphQLClient, root: GraphQLClient
) -> None:
    arguments = {"mailbox": {"path": "INBOX"}, "raw": LARGE_MESSAGE.decode()}
    users = {
        "ids": [global_ids.encode("User", client.user.id) for client in (pgp_account.client, bob)]
    }
    answer = await run_message_mutation(root, "messageImport", **arguments, users=users)
    assert answer["errors"] == []
    sql = "SELECT id FROM messages WHERE user_id = :u"
    ((ada_message_id,),) = await select_rows(root.environment, sql, u=pgp_account.client.user.id)
    ((bob_message_id,),) = await select_rows(root.environment, sql, u=bob.user.id)
    assert await pgp_account.decrypt(ada_message_id) == encryptable_part(LARGE_MESSAGE)
    assert await load_source(bob, bob_message_id) == LARGE_MESSAGE


async def test_sent_copy_is_encrypted_but_outgoing_message_is_not(
    pgp_account: OpenPgpAccount,
) -> None:
    assert (await try_update_users(pgp_account.client, encryptMessages=False))[1] == []
    arguments = {"mailboxes": [{"specialUse": "SENT"}], "set": {"encryptMessages": True}}
    assert (
        await execute_mutation(pgp_account.client, "mailboxUpdate", "tasks { id }", **arguments)
    )["errors"] == []
    recipients = [NamedAddress("carol@example.net")]
    request = SendRequest(to=recipients, subject="Hi", text=BODY_TEXT)
    sent = await submission_create.compose_and_queue_message(
        client_context(pgp_account.client), request
    )
    assert sent.submission is not None
    assert sent.message is not None
    assert BODY_TEXT.encode() in await pgp_account.decrypt(sent.message.id)
    assert (
        await load_submission_blob_id(pgp_account.client.environment, sent.submission.id)
        != sent.message.blob_id
    )


async def test_upload_to_shared_mailbox_is_encrypted_to_its_owner(
    pgp_account: OpenPgpAccount, bob: GraphQLClient
) -> None:
    assert (await try_update_users(pgp_account.client, encryptMessages=False))[1] == []
    await make(client_context(pgp_account.client), NewMailboxes(["Team"], encrypt_messages=True))
    assert await share_mailbox(pgp_account.client, bob, "LOOKUP", "READ", "INSERT", "CREATE") == []
    mailbox = {"id": mailbox_global_id((await pgp_account.client.load_mailbox("Team")).id)}
    answer = await run_message_mutation(
        bob, "messageImport", mailbox=mailbox, raw=PLAIN_MESSAGE.decode()
    )
    assert answer["errors"] == []
    assert await pgp_account.decrypt(
        global_ids.decode("Message", answer["messages"][0]["id"])
    ) == encryptable_part(PLAIN_MESSAGE)
    arguments = {"paths": ["Sub"], "parent": mailbox, "encryptMessages": True}
    (error,) = (await execute_mutation(bob, "mailboxCreate", "tasks { id }", **arguments))["errors"]
    assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["encryptMessages"])


async def test_search_of_encrypted_message_finds_header_words_only(
    pgp_account: OpenPgpAccount, bob: GraphQLClient
) -> None:
    raw = raw_message("Pond", body=BODY_TEXT)
    await deliver_locally(pgp_account.client.environment, raw, pgp_account.client, bob)
    await index_worker.index_next_batch_and_record_contacts(pgp_account.client.environment)
    assert await find_subjects(pgp_account.client, query="pond") == ["Pond"]
    assert await find_subjects(pgp_account.client, query="herons") == []
    assert await find_subjects(bob, query="herons") == ["Pond"]
    message_rows = await select_rows(
        pgp_account.client.environment,
        "SELECT preview, encrypted, sha256 FROM messages WHERE user_id = :u",
        u=pgp_account.client.user.id,
    )
    ((preview, encrypted, digest),) = message_rows
    assert (preview, bool(encrypted), digest == content_digest(raw)) == ("", True, False)


async def set_mailbox_encryption(
    client: GraphQLClient, *, on: bool, path: str = "INBOX"
) -> list[Any]:
    arguments = {"mailboxes": [{"path": path}], "set": {"encryptMessages": on}}
    fields = "mailboxes { encryptMessages }"
    answer = await execute_mutation(client, "mailboxUpdate", fields, **arguments)
    assert answer["errors"] or answer["mailboxes"] == [{"encryptMessages": on}]
    return list(answer["errors"])


async def test_encryption_requires_key_and_blocks_its_removal(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    _, (error,) = await try_update_users(ada, encryptMessages=True)
    expected = ("VALIDATION", ["set", "encryptMessages"], "REQUIRED")
    assert (error["code"], error["path"], error["constraint"]) == expected
    (error,) = await set_mailbox_encryption(ada, on=True)
    assert (error["code"], error["path"], error["constraint"]) == expected
    arguments = {"paths": ["A"], "encryptMessages": True}
    (error,) = (await execute_mutation(ada, "mailboxCreate", "tasks { id }", **arguments))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["encryptMessages"])
    _, (error,) = await try_create_user(root, encryptMessages=True)
    assert (error["code"], error["path"]) == ("VALIDATION", ["encryptMessages"])

    key = armored_public_key(make_secret_key("Ada"))
    assert (await try_update_users(ada, openpgpPublicKey=key, encryptMessages=True))[1] == []
    assert await set_mailbox_encryption(ada, on=True) == []
    key_in_use = ("CONFLICT", ["set", "openpgpPublicKey"])
    _, (error,) = await try_update_users(ada, openpgpPublicKey=None)
    assert (error["code"], error["path"]) == key_in_use
    # the mailbox still uses the key
    _, (error,) = await try_update_users(ada, openpgpPublicKey=None, encryptMessages=False)
    assert (error["code"], error["path"]) == key_in_use
    assert (await try_update_users(ada, encryptMessages=False))[1] == []
    assert await set_mailbox_encryption(ada, on=False) == []
    assert (await try_update_users(ada, openpgpPublicKey=None))[1] == []


async def test_encryption_setting_is_shown_and_writes_events(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    key = armored_public_key(make_secret_key("Ada"))
    before = await load_stream_position(ada.environment, ada.user.id)
    assert (await try_update_users(ada, openpgpPublicKey=key, encryptMessages=True))[1] == []
    assert await set_mailbox_encryption(ada, on=True) == []
    written_events = await load_journal_changes(ada.environment, ada.user.id, before)
    assert written_events[0] == (
        EventType.USER_UPDATED,
        [ada.user.id],
        [["encryptMessages", "openpgpPublicKey"]],
    )
    assert [kind for kind, *_ in written_events[1:]] == [EventType.MAILBOX_UPDATED]
    answer = await ada("{ viewer { user { encryptMessages } } }")
    assert answer["viewer"]["user"]["encryptMessages"] is True
    created_user, errors = await try_create_user(root, openpgpPublicKey=key, encryptMessages=True)
    assert errors == []
    answer = await root(
        "query ($id: ID!) { user(by: {id: $id}) { encryptMessages } }", id=created_user["id"]
    )
    assert answer["user"]["encryptMessages"] is True


async def test_encryption_setting_of_another_user_cannot_be_changed(
    pgp_account: OpenPgpAccount, bob: GraphQLClient
) -> None:
    assert (
        await try_update_users(bob, openpgpPublicKey=armored_public_key(make_secret_key("Bob")))
    )[1] == []
    mailbox_id = mailbox_global_id((await pgp_account.client.load_mailbox()).id)
    for users in (None, {"ids": [global_ids.encode("User", pgp_account.client.user.id)]}):
        arguments: dict[str, Any] = {"users": users, "mailboxes": [{"id": mailbox_id}]}
        arguments["set"] = {"encryptMessages": False}
        (error,) = (await execute_mutation(bob, "mailboxUpdate", "tasks { id }", **arguments))[
            "errors"
        ]
        assert error["code"] in ("NOT_FOUND", "FORBIDDEN")
    for name, value in (("encryptMessages", False), ("openpgpPublicKey", None)):
        _, (error,) = await try_update_users(bob, pgp_account.client, **{name: value})
        assert error["code"] in ("NOT_FOUND", "FORBIDDEN")
    (inserted,) = await deliver_locally(bob.environment, PLAIN_MESSAGE, pgp_account.client)
    assert await pgp_account.decrypt(inserted.message_id) == encryptable_part(PLAIN_MESSAGE)

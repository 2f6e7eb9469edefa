"""Delivery header fields of stored messages, and labels of subaddresses."""

import asyncio
import base64
import hashlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select

from mail.delivery import subaddress_mailbox
from mail.delivery.listener_backend import LocalBackend
from mail.envelope.local_recipient import LocalRecipient
from mail.recipients.address_resolution import load_recipient_below_limits
from mail.storage import delivery_headers
from mail.storage.blobs.message_layout import parse_layout, prepend_to_layout, split_message
from mail.storage.received_messages import parse_storable_message
from models.events.event_types import EventType
from models.files.blobs import Blob
from models.runtime.environment import Environment
from models.users.tables import SubaddressAction
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.openpgp_keys import make_public_key
from tests.support.accounts.user_operations import try_update_users
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.inbound_messages import SPAM_FLAG_HEADER, deliver_to_users
from tests.support.mail.stored_messages import stored_messages_by_path
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

CAROL = "carol@example.com"
ADA = LocalRecipient(1, 1, 1, 1, "ada@example.org")
DELIVERY_FIELDS = (
    b"Return-Path: <carol@example.com>\r\n"
    b"Delivered-To: ada@example.org\r\n"
    b"X-Original-Rcpt: ada@example.org\r\n"
)
MULTIPART_MESSAGE = (
    b"Subject: Mixed\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHello\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\ntext\r\n--b\r\n"
    b"Content-Type: application/pdf\r\nContent-Disposition: attachment\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\n"
    + base64.encodebytes(bytes(range(256)) * 300).replace(b"\n", b"\r\n")
    + b"--b--\r\n"
)
UNUSUAL_MESSAGES = [
    raw_message("plain"),
    MULTIPART_MESSAGE,
    b"",
    b"\r\nno header",
    b"no header at all\r\nsecond line\r\n",
    b" folded: x\r\nSubject: a\r\n\r\nb",
    b"From carol Mon Jan 1\r\nSubject: a\r\n\r\nb",
    b"Subject: lf\n\nbody\n",
    b"Subject: x",
]


async def deliver_to_address(environment: Environment, address: str, raw: bytes) -> None:
    backend = LocalBackend(environment)
    (outcome,) = await backend.deliver(raw, [await backend.accept_recipient(address, CAROL)], CAROL)
    assert not isinstance(outcome, BaseException), outcome


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=50))
def test_layout_is_extended_at_its_beginning(raw: bytes, prefix: bytes) -> None:
    layout = parse_layout(prepend_to_layout(split_message(raw, []).layout_bytes, prefix))
    assert layout.slice(0, len(layout)) == prefix + raw
    assert len(layout) == len(prefix + raw)


@pytest.mark.parametrize("raw", UNUSUAL_MESSAGES)
async def test_extended_message_equals_the_parsed_extended_bytes(
    raw: bytes, tmp_path: Path
) -> None:
    received, extended_raw = await parse_storable_message(raw), DELIVERY_FIELDS + raw
    (tmp_path / "raw").write_bytes(raw)
    for source in (raw, tmp_path / "raw"):
        with ExitStack() as files:
            extended = await delivery_headers.add_delivery_headers_and_subject_label(
                source, received, ADA, CAROL, files
            )
        parsed = await parse_storable_message(extended_raw)
        assert extended.structure_json == parsed.structure_json
        assert (extended.layout_blob, extended.size) == (parsed.layout_blob, parsed.size)
        assert extended.digest == hashlib.sha256(extended_raw).hexdigest()
        assert extended.facts.header_size == parsed.facts.header_size
        assert list(extended.part_blobs) == list(parsed.part_blobs)
        assert extended.received_digest == received.digest


def test_sender_with_line_breaks_adds_no_field() -> None:
    fields = delivery_headers.delivery_header_fields(
        ADA, "a\r\nBcc: x@far.example\0\ud800@far.example"
    )
    assert fields.count(b"\r\n") == 3
    assert b"\r\nBcc" not in fields


@pytest.mark.usefixtures("verify_consistency")
async def test_recipients_have_own_delivery_fields_and_shared_blobs(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await add_forwarding_address(environment, "list", ada.address)
    backend = LocalBackend(environment)
    recipients = [
        await backend.accept_recipient(address, CAROL)
        for address in ("list@example.org", "B.ob+x@example.org")
    ]
    assert len(await backend.deliver(MULTIPART_MESSAGE, recipients, CAROL)) == 2
    ((row, stored),) = (await stored_messages_by_path(ada)).values()
    ada_fields = DELIVERY_FIELDS.replace(b"Rcpt: ada", b"Rcpt: list")
    assert stored == ada_fields + MULTIPART_MESSAGE
    assert (row.size, row.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    ((_, bob_stored),) = (await stored_messages_by_path(bob)).values()
    assert bob_stored == DELIVERY_FIELDS.replace(b"ada", b"B.ob+x") + MULTIPART_MESSAGE
    statement = select(func.count().label("many")).select_from(Blob)
    assert (await environment.database.read(statement))[
        0
    ].many == 3  # two root blobs, one attachment
    repeated_results = await backend.deliver(MULTIPART_MESSAGE, recipients, CAROL)
    assert next(delivery.message_id for delivery in repeated_results) == row.id  # type: ignore[attr-defined]
    assert len(await stored_messages_by_path(ada)) == 1


@pytest.mark.usefixtures("verify_consistency")
async def test_encrypted_message_has_delivery_fields_in_plain_text(
    ada: GraphQLClient, environment: Environment
) -> None:
    key = make_public_key("Ada <ada@example.org>")
    assert (await try_update_users(ada, openpgpPublicKey=key, encryptMessages=True))[1] == []
    await deliver_to_users(environment, ada, raw=raw_message("Sealed", body="hidden"))
    ((row, stored),) = (await stored_messages_by_path(ada)).values()
    assert stored.startswith(DELIVERY_FIELDS)
    assert (b"hidden" in stored, row.encrypted) == (False, True)
    await deliver_to_users(environment, ada, raw=raw_message("Sealed", body="hidden"))
    assert len(await select_rows(environment, "SELECT id FROM messages")) == 1


@pytest.mark.parametrize(
    "case",
    [
        ("ada@example.org", "+", ""),
        ("A.D.A+News@example.org", "+", "News"),
        ("ada+a+b@example.org", "+", "a+b"),
        ("ada-x+y@example.org", "+-", "y"),
        ("bob-x@example.org", "+-", "x"),
        ("any+x@example.org", "+", "x"),
    ],
)
async def test_label_is_the_part_after_the_delimiter(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, case: tuple[str, str, str]
) -> None:
    address, delimiters, label = case
    document = """mutation ($input: AddressCreateInput!) {
        addressCreate(input: $input) { errors { code } } }"""
    for extra_address in ("ada-x@example.org", "*@example.org"):
        arguments = {"address": extra_address, "user": {"username": "ada"}, "allowWildcard": True}
        assert (await root(document, input=arguments))["addressCreate"]["errors"] == []
    assert (await try_update_users(root, ada, bob, subaddressAction="SUBJECT"))[1] == []
    environment = ada.environment
    object.__setattr__(
        environment,
        "options",
        replace(environment.options, addresses_subaddress_delimiters=delimiters),
    )
    assert (await load_recipient_below_limits(environment, address)).label == label


@pytest.mark.usefixtures("verify_consistency")
async def test_label_is_written_before_the_subject(
    ada: GraphQLClient, environment: Environment
) -> None:
    assert (await try_update_users(ada, subaddressAction="SUBJECT"))[1] == []
    raw = b"To: x\r\nSubject: Long\r\n subject\r\nsubject: second\r\nX: y\r\n\r\nSubject: body\r\n"
    await deliver_to_address(environment, "ada+Caf\u00e9@example.org", raw)
    ((row, stored),) = (await stored_messages_by_path(ada)).values()
    assert row.subject == "[Caf\u00e9] second"
    assert stored.endswith(b"\r\nX: y\r\n\r\nSubject: body\r\n")
    assert stored.lower().count(b"subject") == 2
    await deliver_to_address(environment, "ada@example.org", raw_message("No label"))
    await deliver_to_address(environment, "ada+x@example.org", b"To: y\r\n\r\nnone")
    subjects = await select_rows(environment, "SELECT subject FROM messages ORDER BY id")
    assert [subject for (subject,) in subjects] == ["[Caf\u00e9] second", "No label", "[x]"]


@pytest.mark.usefixtures("verify_consistency")
async def test_label_selects_a_mailbox_below_inbox(
    ada: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (await try_update_users(ada, subaddressAction="SUBFOLDER"))[1] == []
    last_position = await load_stream_position(environment, ada.user.id)
    await deliver_to_address(environment, "ada+News@example.org", raw_message("a"))
    await deliver_to_address(environment, "ada+nEWS@example.org", raw_message("b"))
    await deliver_to_address(environment, "bob+news@example.org", raw_message("c"))
    kinds = [
        kind for kind, _ in await load_journal_entries(environment, ada.user.id, last_position)
    ]
    assert kinds == [
        EventType.MAILBOX_CREATED, EventType.MESSAGE_RECEIVED, EventType.MESSAGE_RECEIVED,
    ]  # fmt: skip
    assert list(await stored_messages_by_path(bob)) == ["INBOX"]
    statement = "SELECT m.path, m.message_count FROM mailboxes m WHERE m.path LIKE 'INBOX/%'"
    assert await select_rows(environment, statement) == [("INBOX/news", 2)]
    monkeypatch.setattr(subaddress_mailbox, "MAX_MAILBOXES", 2)
    spam = raw_message("spam", **SPAM_FLAG_HEADER)
    backend = LocalBackend(environment)
    await backend.deliver(
        spam, [await backend.accept_recipient("ada+spam@example.org", CAROL)], CAROL
    )
    for label in ("two", "three", "a/b", ".", "x" * 40):
        await deliver_to_address(environment, f"ada+{label}@example.org", raw_message(label))
    mailboxes = await select_rows(environment, statement + " ORDER BY m.path")
    assert mailboxes == [("INBOX/news", 2), ("INBOX/two", 1)]
    ((total,),) = await select_rows(
        environment,
        "SELECT message_count FROM mailboxes WHERE path = 'INBOX' AND user_id = :u",
        u=ada.user.id,
    )
    assert total == 4


@pytest.mark.usefixtures("verify_consistency")
async def test_simultaneous_deliveries_create_one_mailbox(
    ada: GraphQLClient, environment: Environment
) -> None:
    assert (await try_update_users(ada, subaddressAction="SUBFOLDER"))[1] == []
    await asyncio.gather(
        *(
            deliver_to_address(environment, "ada+many@example.org", raw_message(f"n{number}"))
            for number in range(8)
        )
    )
    result = await select_rows(
        environment, "SELECT message_count FROM mailboxes WHERE path = 'INBOX/many'"
    )
    assert result == [(8,)]


async def test_subaddress_action_needs_a_permission(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    document = """mutation ($input: UserPermissionsSetInput!) {
        userPermissionsSet(input: $input) { errors { code } } }"""
    arguments = {"users": {"usernames": ["ada"]}, "permissions": ["SPAM_POLICY"]}
    assert (await root(document, input=arguments))["userPermissionsSet"]["errors"] == []
    _, (error,) = await try_update_users(ada, subaddressAction="SUBJECT")
    assert (error["requires"], error["path"]) == ("SUBADDRESS_ACTION", ["set", "subaddressAction"])
    assert (await try_update_users(root, ada, subaddressAction="SUBJECT"))[1] == []
    result = await ada("{ user { subaddressAction } }")
    assert result["user"]["subaddressAction"] == SubaddressAction.SUBJECT.value

"""What stands before a stored message, and what labels of addresses do."""

import asyncio
import base64
import hashlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sqlalchemy import func, select

from mail.delivery import subaddress_mailbox
from mail.delivery.listener_backend import LocalBackend
from mail.envelope.local_recipient import LocalRecipient
from mail.recipients.address_resolution import load_recipient
from mail.storage import delivery_headers
from mail.storage.blobs.message_layout import parse_layout, prepend_to_layout, split_message
from mail.storage.received_messages import read_message
from models.events.journal import ChangeKind
from models.files.blobs import Blob
from models.runtime.environment import Environment
from models.users.tables import DelimiterAction
from tests.conftest import Client, raw_message
from tests.support.accounts.openpgp_keys import key_of
from tests.support.accounts.user_operations import change
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.inbound_messages import SPAM_FLAG_HEADER, deliver_to_users
from tests.support.mail.stored_messages import stored_messages_by_path
from tests.support.stores.counter_check import journal, reached, rows

CAROL = "carol@example.com"
ADA = LocalRecipient(1, 1, 1, 1, "ada@example.org")
BEFORE = (
    b"Return-Path: <carol@example.com>\r\n"
    b"Delivered-To: ada@example.org\r\n"
    b"X-Original-Rcpt: ada@example.org\r\n"
)
MIXED = (
    b"Subject: Mixed\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHello\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\ntext\r\n--b\r\n"
    b"Content-Type: application/pdf\r\nContent-Disposition: attachment\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\n"
    + base64.encodebytes(bytes(range(256)) * 300).replace(b"\n", b"\r\n")
    + b"--b--\r\n"
)
ODD = [
    raw_message("plain"),
    MIXED,
    b"",
    b"\r\nno header",
    b"no header at all\r\nsecond line\r\n",
    b" folded: x\r\nSubject: a\r\n\r\nb",
    b"From carol Mon Jan 1\r\nSubject: a\r\n\r\nb",
    b"Subject: lf\n\nbody\n",
    b"Subject: x",
]


async def come_to(world: Environment, address: str, raw: bytes) -> None:
    house = LocalBackend(world)
    (outcome,) = await house.deliver(raw, [await house.accept_recipient(address, CAROL)], CAROL)
    assert not isinstance(outcome, BaseException), outcome


@given(some.binary(max_size=200), some.binary(min_size=1, max_size=50))
def test_a_skeleton_grows_at_its_beginning(raw: bytes, prefix: bytes) -> None:
    skeleton = parse_layout(prepend_to_layout(split_message(raw, []).layout_bytes, prefix))
    assert skeleton.slice(0, len(skeleton)) == prefix + raw
    assert len(skeleton) == len(prefix + raw)


@pytest.mark.parametrize("raw", ODD)
async def test_the_letter_is_what_reading_it_anew_gives(raw: bytes, tmp_path: Path) -> None:
    letter, whole = await read_message(raw), BEFORE + raw
    (tmp_path / "raw").write_bytes(raw)
    for source in (raw, tmp_path / "raw"):
        with ExitStack() as files:
            made = await delivery_headers.add_delivery_headers(source, letter, ADA, CAROL, files)
        fresh = await read_message(whole)
        assert made.structure_json == fresh.structure_json
        assert (made.layout_blob, made.size) == (fresh.layout_blob, fresh.size)
        assert made.digest == hashlib.sha256(whole).hexdigest()
        assert made.facts.header_size == fresh.facts.header_size
        assert list(made.part_blobs) == list(fresh.part_blobs)
        assert made.received_digest == letter.digest


def test_no_field_is_made_up_by_a_sender() -> None:
    found = delivery_headers.delivery_header_fields(
        ADA, "a\r\nBcc: x@far.example\0\ud800@far.example"
    )
    assert found.count(b"\r\n") == 3
    assert b"\r\nBcc" not in found


@pytest.mark.usefixtures("examined")
async def test_each_has_his_own_before_the_same_pieces(
    ada: Client, bob: Client, world: Environment
) -> None:
    await add_forwarding_address(world, "list", ada.address)
    house = LocalBackend(world)
    there = [
        await house.accept_recipient(one, CAROL)
        for one in ("list@example.org", "B.ob+x@example.org")
    ]
    assert len(await house.deliver(MIXED, there, CAROL)) == 2
    ((row, whole),) = (await stored_messages_by_path(ada)).values()
    before = BEFORE.replace(b"Rcpt: ada", b"Rcpt: list")
    assert whole == before + MIXED
    assert (row.size, row.digest) == (len(whole), hashlib.sha256(whole).hexdigest())
    ((_, theirs),) = (await stored_messages_by_path(bob)).values()
    assert theirs == BEFORE.replace(b"ada", b"B.ob+x") + MIXED
    many = select(func.count().label("many")).select_from(Blob)
    assert (await world.database.read(many))[0].many == 3  # two roots, one attachment
    again = await house.deliver(MIXED, there, CAROL)
    assert next(one.message_id for one in again) == row.id  # type: ignore[attr-defined]
    assert len(await stored_messages_by_path(ada)) == 1


@pytest.mark.usefixtures("examined")
async def test_what_is_encrypted_has_the_fields_outside(ada: Client, world: Environment) -> None:
    key = key_of("Ada <ada@example.org>")
    assert (await change(ada, pubKey=key, encryptMessages=True))[1] == []
    await deliver_to_users(world, ada, raw=raw_message("Sealed", body="hidden"))
    ((row, whole),) = (await stored_messages_by_path(ada)).values()
    assert whole.startswith(BEFORE)
    assert (b"hidden" in whole, row.encrypted) == (False, True)
    await deliver_to_users(world, ada, raw=raw_message("Sealed", body="hidden"))
    assert len(await rows(world, "SELECT id FROM messages")) == 1


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
async def test_labels_are_what_is_cut_off(
    root: Client, ada: Client, bob: Client, case: tuple[str, str, str]
) -> None:
    address, delimiters, label = case
    document = """mutation ($input: AddressCreateInput!) {
        addressCreate(input: $input) { errors { code } } }"""
    for other in ("ada-x@example.org", "*@example.org"):
        given = {"address": other, "user": {"username": "ada"}, "allowWildcard": True}
        assert (await root(document, input=given))["addressCreate"]["errors"] == []
    assert (await change(root, ada, bob, delimiterAction="SUBJECT"))[1] == []
    world = ada.world
    object.__setattr__(world, "options", replace(world.options, delimiters=delimiters))
    assert (await load_recipient(world, address)).label == label


@pytest.mark.usefixtures("examined")
async def test_a_label_stands_before_the_subject(ada: Client, world: Environment) -> None:
    assert (await change(ada, delimiterAction="SUBJECT"))[1] == []
    raw = b"To: x\r\nSubject: Long\r\n subject\r\nsubject: second\r\nX: y\r\n\r\nSubject: body\r\n"
    await come_to(world, "ada+Caf\u00e9@example.org", raw)
    ((row, whole),) = (await stored_messages_by_path(ada)).values()
    assert row.subject == "[Caf\u00e9] second"
    assert whole.endswith(b"\r\nX: y\r\n\r\nSubject: body\r\n")
    assert whole.lower().count(b"subject") == 2
    await come_to(world, "ada@example.org", raw_message("No label"))
    await come_to(world, "ada+x@example.org", b"To: y\r\n\r\nnone")
    subjects = await rows(world, "SELECT subject FROM messages ORDER BY id")
    assert [one for (one,) in subjects] == ["[Caf\u00e9] second", "No label", "[x]"]


@pytest.mark.usefixtures("examined")
async def test_a_label_names_a_folder(
    ada: Client, bob: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await change(ada, delimiterAction="SUBFOLDER"))[1] == []
    last = await reached(world, ada.user.id)
    await come_to(world, "ada+News@example.org", raw_message("a"))
    await come_to(world, "ada+nEWS@example.org", raw_message("b"))
    await come_to(world, "bob+news@example.org", raw_message("c"))
    kinds = [kind for kind, _ in await journal(world, ada.user.id, last)]
    assert kinds == [
        ChangeKind.MAILBOX_CREATED, ChangeKind.MESSAGE_ADDED, ChangeKind.MESSAGE_ADDED,
    ]  # fmt: skip
    assert list(await stored_messages_by_path(bob)) == ["INBOX"]
    found = "SELECT m.path, m.total FROM mailboxes m WHERE m.path LIKE 'INBOX/%'"
    assert await rows(world, found) == [("INBOX/news", 2)]
    monkeypatch.setattr(subaddress_mailbox, "MAX_MAILBOXES", 2)
    spam = raw_message("spam", **SPAM_FLAG_HEADER)
    house = LocalBackend(world)
    await house.deliver(spam, [await house.accept_recipient("ada+spam@example.org", CAROL)], CAROL)
    for label in ("two", "three", "a/b", ".", "x" * 40):
        await come_to(world, f"ada+{label}@example.org", raw_message(label))
    there = await rows(world, found + " ORDER BY m.path")
    assert there == [("INBOX/news", 2), ("INBOX/two", 1)]
    ((total,),) = await rows(
        world, "SELECT total FROM mailboxes WHERE path = 'INBOX' AND user_id = :u", u=ada.user.id
    )
    assert total == 4


@pytest.mark.usefixtures("examined")
async def test_a_folder_is_made_once_by_many_at_once(ada: Client, world: Environment) -> None:
    assert (await change(ada, delimiterAction="SUBFOLDER"))[1] == []
    await asyncio.gather(
        *(come_to(world, "ada+many@example.org", raw_message(f"n{nth}")) for nth in range(8))
    )
    found = await rows(world, "SELECT total FROM mailboxes WHERE path = 'INBOX/many'")
    assert found == [(8,)]


async def test_only_who_may_changes_what_labels_do(root: Client, ada: Client) -> None:
    document = """mutation ($input: UserPermissionsSetInput!) {
        userPermissionsSet(input: $input) { errors { code } } }"""
    given = {"users": {"usernames": ["ada"]}, "permissions": ["SPAM_SCORE"]}
    assert (await root(document, input=given))["userPermissionsSet"]["errors"] == []
    _, (error,) = await change(ada, delimiterAction="SUBJECT")
    assert (error["requires"], error["path"]) == ("DELIMITER_ACTION", ["set", "delimiterAction"])
    assert (await change(root, ada, delimiterAction="SUBJECT"))[1] == []
    found = await ada("{ user { delimiterAction } }")
    assert found["user"]["delimiterAction"] == DelimiterAction.SUBJECT.value

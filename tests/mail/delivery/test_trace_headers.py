"""What stands before a stored message, and what labels of addresses do."""

import asyncio
import base64
import hashlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sqlalchemy import func, select
from sqlmodel import col

from mail.delivery import subaddress_mailbox
from mail.delivery.listener_backend import Household
from mail.envelope.local_recipient import Recipient
from mail.recipients.address_resolution import recipient
from mail.storage import delivery_headers
from mail.storage.blobs.message_layout import open_skeleton, pack, prefixed
from mail.storage.message_content import gathered, sources
from mail.storage.received_messages import read
from models.events.journal import ChangeKind
from models.files.blobs import Blob
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import World
from models.users.tables import DelimiterAction
from tests.conftest import Client, raw_message
from tests.mail.delivery.test_address_forwarding import make
from tests.mail.inbound.test_junk_mailbox import FLAG, come
from tests.support.accounts.openpgp_keys import key_of
from tests.support.accounts.user_operations import change
from tests.support.stores.counter_check import journal, reached, rows

CAROL = "carol@example.com"
ADA = Recipient(1, 1, 1, 1, "ada@example.org")
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


async def come_to(world: World, address: str, raw: bytes) -> None:
    house = Household(world)
    (outcome,) = await house.deliver(raw, [await house.accept(address, CAROL)], CAROL)
    assert not isinstance(outcome, BaseException), outcome


async def stored(client: Client) -> dict[str, tuple[Any, bytes]]:
    """The messages of an account, row and bytes, by path."""
    asked = (
        select(*Message.__table__.c, col(Mailbox.path))  # type: ignore[attr-defined]
        .join(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
        .where(col(Message.user_id) == client.user.id)
    )
    found = await client.world.database.read(asked)
    opened = await sources(client.world, found)
    return {
        row.path: (row, await gathered(one.whole())) for row, one in zip(found, opened, strict=True)
    }


@given(some.binary(max_size=200), some.binary(min_size=1, max_size=50))
def test_a_skeleton_grows_at_its_beginning(raw: bytes, prefix: bytes) -> None:
    skeleton = open_skeleton(prefixed(pack(raw, []).skeleton, prefix))
    assert skeleton.slice(0, len(skeleton)) == prefix + raw
    assert len(skeleton) == len(prefix + raw)


@pytest.mark.parametrize("raw", ODD)
async def test_the_letter_is_what_reading_it_anew_gives(raw: bytes, tmp_path: Path) -> None:
    letter, whole = await read(raw), BEFORE + raw
    (tmp_path / "raw").write_bytes(raw)
    for source in (raw, tmp_path / "raw"):
        with ExitStack() as files:
            made = await delivery_headers.stamped(source, letter, ADA, CAROL, files)
        fresh = await read(whole)
        assert made.structure == fresh.structure
        assert (made.root, made.size) == (fresh.root, fresh.size)
        assert made.digest == hashlib.sha256(whole).hexdigest()
        assert made.facts.header_size == fresh.facts.header_size
        assert list(made.pieces) == list(fresh.pieces)
        assert made.came == letter.digest


def test_no_field_is_made_up_by_a_sender() -> None:
    found = delivery_headers.fields(ADA, "a\r\nBcc: x@far.example\0\ud800@far.example")
    assert found.count(b"\r\n") == 3
    assert b"\r\nBcc" not in found


@pytest.mark.usefixtures("examined")
async def test_each_has_his_own_before_the_same_pieces(
    ada: Client, bob: Client, world: World
) -> None:
    await make(world, "list", ada.address)
    house = Household(world)
    there = [await house.accept(one, CAROL) for one in ("list@example.org", "B.ob+x@example.org")]
    assert len(await house.deliver(MIXED, there, CAROL)) == 2
    ((row, whole),) = (await stored(ada)).values()
    before = BEFORE.replace(b"Rcpt: ada", b"Rcpt: list")
    assert whole == before + MIXED
    assert (row.size, row.digest) == (len(whole), hashlib.sha256(whole).hexdigest())
    ((_, theirs),) = (await stored(bob)).values()
    assert theirs == BEFORE.replace(b"ada", b"B.ob+x") + MIXED
    many = select(func.count().label("many")).select_from(Blob)
    assert (await world.database.read(many))[0].many == 3  # two roots, one attachment
    again = await house.deliver(MIXED, there, CAROL)
    assert next(one.message_id for one in again) == row.id  # type: ignore[attr-defined]
    assert len(await stored(ada)) == 1


@pytest.mark.usefixtures("examined")
async def test_what_is_encrypted_has_the_fields_outside(ada: Client, world: World) -> None:
    key = key_of("Ada <ada@example.org>")
    assert (await change(ada, pubKey=key, encryptMessages=True))[1] == []
    await come(world, ada, raw=raw_message("Sealed", body="hidden"))
    ((row, whole),) = (await stored(ada)).values()
    assert whole.startswith(BEFORE)
    assert (b"hidden" in whole, row.encrypted) == (False, True)
    await come(world, ada, raw=raw_message("Sealed", body="hidden"))
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
    assert (await recipient(world, address)).label == label


@pytest.mark.usefixtures("examined")
async def test_a_label_stands_before_the_subject(ada: Client, world: World) -> None:
    assert (await change(ada, delimiterAction="SUBJECT"))[1] == []
    raw = b"To: x\r\nSubject: Long\r\n subject\r\nsubject: second\r\nX: y\r\n\r\nSubject: body\r\n"
    await come_to(world, "ada+Caf\u00e9@example.org", raw)
    ((row, whole),) = (await stored(ada)).values()
    assert row.subject == "[Caf\u00e9] second"
    assert whole.endswith(b"\r\nX: y\r\n\r\nSubject: body\r\n")
    assert whole.lower().count(b"subject") == 2
    await come_to(world, "ada@example.org", raw_message("No label"))
    await come_to(world, "ada+x@example.org", b"To: y\r\n\r\nnone")
    subjects = await rows(world, "SELECT subject FROM messages ORDER BY id")
    assert [one for (one,) in subjects] == ["[Caf\u00e9] second", "No label", "[x]"]


@pytest.mark.usefixtures("examined")
async def test_a_label_names_a_folder(
    ada: Client, bob: Client, world: World, monkeypatch: pytest.MonkeyPatch
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
    assert list(await stored(bob)) == ["INBOX"]
    found = "SELECT m.path, m.total FROM mailboxes m WHERE m.path LIKE 'INBOX/%'"
    assert await rows(world, found) == [("INBOX/news", 2)]
    monkeypatch.setattr(subaddress_mailbox, "MOST", 2)
    spam = raw_message("spam", **FLAG)
    house = Household(world)
    await house.deliver(spam, [await house.accept("ada+spam@example.org", CAROL)], CAROL)
    for label in ("two", "three", "a/b", ".", "x" * 40):
        await come_to(world, f"ada+{label}@example.org", raw_message(label))
    there = await rows(world, found + " ORDER BY m.path")
    assert there == [("INBOX/news", 2), ("INBOX/two", 1)]
    ((total,),) = await rows(
        world, "SELECT total FROM mailboxes WHERE path = 'INBOX' AND user_id = :u", u=ada.user.id
    )
    assert total == 4


@pytest.mark.usefixtures("examined")
async def test_a_folder_is_made_once_by_many_at_once(ada: Client, world: World) -> None:
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

"""What arrives is encrypted to the key of its account, or not stored."""

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
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.mailboxes.loaders import create_mailboxes as make
from resolvers.messages import content
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import Client, Clock, context, raw_message
from tests.support.accounts.account_rows import letter
from tests.support.accounts.openpgp_keys import opened, pair_of, public_of
from tests.support.accounts.shared_mailboxes import box_id, share
from tests.support.accounts.user_operations import change, create, events, run
from tests.support.mail.trace_header_lines import below
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.queue_worker import blob_of
from tests.support.operations.bulk_operations import call
from tests.support.operations.message_pages import found
from tests.support.stores.counter_check import reached, rows

pytestmark = pytest.mark.usefixtures("examined")

WORDS = "herons at dawn"
PLAIN = raw_message("Plain", body=WORDS)
LARGE = letter("Large", attached=150_000)
KEPT = {
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
class Owner:
    """An account with a key of its own."""

    client: Client
    pair: pysequoia.Tsk

    async def opened(self, message: int) -> bytes:
        return opened(await source(self.client, message), self.pair)


@pytest.fixture
async def eve(ada: Client, clock: Clock) -> Owner:
    """Ada, whose key is good for a month, and who has all encrypted to it."""
    seconds = int((clock() - datetime.now(UTC)).total_seconds()) + 30 * 86_400
    pair = pair_of("Ada <ada@example.org>", seconds=seconds)
    assert (await change(ada, pubKey=public_of(pair), encryptMessages=True))[1] == []
    return Owner(ada, pair)


async def source(client: Client, message: int) -> bytes:
    stored = await content.load_stored_message(context(client), message)
    assert stored is not None
    return await read_all(stored.stream_raw())


async def deliver(world: Environment, raw: bytes | Path, *to: Client) -> list[Any]:
    house = LocalBackend(world)
    there = [await house.accept_recipient(client.address, "carol@example.com") for client in to]
    return list(await house.deliver(raw, there, "carol@example.com"))


async def count(client: Client) -> int:
    sql = "SELECT id FROM messages WHERE user_id = :u"
    return len(await rows(client.world, sql, u=client.user.id))


def inner(raw: bytes) -> bytes:
    """The part that is to be encrypted: fields of the content, an empty line, the body."""
    if raw.startswith(b"\r\n"):
        return raw
    head, _, body = raw.partition(b"\r\n\r\n")
    fields = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-")]
    return b"".join(line + b"\r\n" for line in fields) + b"\r\n" + body


# what arrives


@pytest.mark.parametrize(
    "raw",
    [
        PLAIN,
        LARGE,
        raw_message("ISO", body="x", Content_Type="text/html", content_language="de"),
        b"\r\n" + WORDS.encode() + b"\r\n",
        raw_message("Bare", body="\xff\0 odd \n.\r ends"),
    ],
)
async def test_a_message_is_encrypted_and_the_same_when_opened(eve: Owner, raw: bytes) -> None:
    (placed,) = await deliver(eve.client.world, raw, eve.client)
    stored = below(await source(eve.client, placed.message_id))
    assert await eve.opened(placed.message_id) == inner(raw)
    if raw.startswith(b"From"):
        outer = stored.partition(b"\r\nMIME-Version")[0]
        assert outer.split(b"\r\n") == [
            line
            for line in raw.partition(b"\r\n\r\n")[0].split(b"\r\n")
            if not line.lower().startswith((b"content-", b"mime-version"))
        ]


async def test_folded_fields_and_short_line_ends_are_understood(eve: Owner) -> None:
    raw = (
        b"Subject: one\n two\nContent-Type: text/plain;\n charset=utf-8\nMIME-Version: 1.0\n"
        b"X-Last: x\n\nbody\n"
    )
    (placed,) = await deliver(eve.client.world, raw, eve.client)
    inside = b"Content-Type: text/plain;\r\n charset=utf-8\r\n\r\nbody\n"
    assert await eve.opened(placed.message_id) == inside
    stored = below(await source(eve.client, placed.message_id))
    assert stored.startswith(b"Subject: one\r\n two\r\nX-Last: x\r\nMIME-Version: 1.0\r\n")


async def test_a_large_one_comes_as_a_file(eve: Owner, tmp_path: Path) -> None:
    path = tmp_path / "letter"
    await asyncio.to_thread(path.write_bytes, LARGE)
    (placed,) = await deliver(eve.client.world, path, eve.client)
    assert await eve.opened(placed.message_id) == inner(LARGE)


@pytest.mark.parametrize("kind", KEPT)
async def test_what_is_encrypted_already_stays_as_it_is(eve: Owner, kind: str) -> None:
    (placed,) = await deliver(eve.client.world, KEPT[kind], eve.client)
    assert below(await source(eve.client, placed.message_id)) == KEPT[kind]


async def test_of_several_each_has_it_as_he_asks_for_it(
    eve: Owner, bob: Client, world: Environment
) -> None:
    pair = pair_of("Bob")
    assert (await change(bob, pubKey=public_of(pair)))[1] == []
    first, clear = await deliver(world, PLAIN, eve.client, bob)
    assert await eve.opened(first.message_id) == inner(PLAIN)
    assert below(await source(bob, clear.message_id)) == PLAIN
    given = {"mailboxes": [{"path": "INBOX"}], "set": {"encryptMessages": True}}
    assert (await run(bob, "mailboxUpdate", "task { id }", **given))["errors"] == []
    ours, his = await deliver(world, LARGE, eve.client, bob)
    assert opened(await source(bob, his.message_id), pair) == inner(LARGE)
    assert await eve.opened(ours.message_id) == inner(LARGE)


async def test_a_repeat_is_known_though_its_bytes_differ(eve: Owner, world: Environment) -> None:
    (first,) = await deliver(world, PLAIN, eve.client)
    (second,) = await deliver(world, PLAIN, eve.client)
    assert (first.message_id, await count(eve.client)) == (second.message_id, 1)


async def test_it_takes_no_further_statement(
    eve: Owner, bob: Client, world: Environment, statements: list[str]
) -> None:
    async def cost(client: Client) -> int:
        await address_resolution.load_recipient(world, client.address)
        del statements[:]
        await address_resolution.load_recipient(world, client.address)
        return len(statements)

    assert await cost(eve.client) == await cost(bob) > 0


# failing closed


async def test_nothing_is_stored_once_the_key_is_over(
    eve: Owner, bob: Client, neighbour: Neighbour, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await deliver(eve.client.world, PLAIN, eve.client)
    clock.tick(days=31)
    caplog.set_level(logging.DEBUG)
    await neighbour.begin(eve.client.address, bob.address)
    neighbour.send(raw_message("Late", body=WORDS) + b".\r\n")
    answers = [(await neighbour.hear())[:9] for _ in range(2)]
    assert answers == ["451 4.3.0", "250 2.0.0"]
    assert (await count(eve.client), await count(bob)) == (1, 1)
    assert any("cannot be encrypted" in record.getMessage() for record in caplog.records)
    assert WORDS not in caplog.text


@pytest.mark.parametrize("key", [None, "-----BEGIN PGP PUBLIC KEY BLOCK-----", ""])
async def test_nothing_is_stored_without_a_sound_key(eve: Owner, key: str | None) -> None:
    world = eve.client.world
    async with world.write_session() as session:
        await session.exec(update(User).values(pub_key=key))
    (outcome,) = await deliver(world, PLAIN, eve.client)
    assert isinstance(outcome, ServiceUnavailable)
    to = JobRecipient(1, eve.client.address, 1, world.now() + timedelta(days=5))
    job = DeliveryJob(1, 2, "q", 3, 4, 5, "bob@example.org", "example.org", world.now(), [to])
    assert (await local_delivery.deliver_to_local_recipients(world, job, PLAIN))[
        1
    ].reply_code == 451
    answer = await call(eve.client, "messageUpload", mailbox={"path": "INBOX"}, raw=PLAIN.decode())
    assert [error["code"] for error in answer["errors"]] == ["UNAVAILABLE"]
    with pytest.raises(ServiceUnavailable):
        await submission_create.send_message(
            context(eve.client), SendRequest(to=[], subject="x", upload_only=True)
        )
    assert await count(eve.client) == 0


async def test_mail_among_ourselves_is_encrypted(eve: Owner, world: Environment) -> None:
    to = JobRecipient(1, eve.client.address, 1, world.now() + timedelta(days=5))
    job = DeliveryJob(1, 2, "q", 3, 4, 5, "bob@example.org", "example.org", world.now(), [to])
    assert (await local_delivery.deliver_to_local_recipients(world, job, PLAIN))[
        1
    ].reply_code == 250
    ((key,),) = await rows(world, "SELECT id FROM messages")
    assert await eve.opened(key) == inner(PLAIN)


# what is put in, and what is sent


async def test_what_is_put_in_is_encrypted_but_for_drafts(eve: Owner, bob: Client) -> None:
    given = {"mailbox": {"path": "INBOX"}, "raw": PLAIN.decode()}
    answer = await call(eve.client, "messageUpload", **given)
    assert answer["errors"] == []
    assert await eve.opened(global_ids.decode("Message", answer["message"]["id"])) == inner(PLAIN)
    answer = await call(eve.client, "messageUpload", **given, draft=True)
    assert answer["message"]["source"].encode() == PLAIN
    box = box_id((await eve.client.box()).id)
    sent = await eve.client.http.post(
        f"/rest/mailboxes/{box}/messages",
        content=LARGE,
        headers={**eve.client.headers, "content-type": "message/rfc822"},
    )
    assert await eve.opened(global_ids.decode("Message", sent.json()["id"])) == inner(LARGE)
    answer = await call(bob, "messageUpload", **given)
    assert answer["message"]["source"].encode() == PLAIN


async def test_what_is_put_into_many_is_encrypted_for_each(
    eve: Owner, bob: Client, root: Client
) -> None:
    given = {"mailbox": {"path": "INBOX"}, "raw": LARGE.decode()}
    users = {"ids": [global_ids.encode("User", one.user.id) for one in (eve.client, bob)]}
    answer = await call(root, "messageUpload", **given, users=users)
    assert answer["errors"] == []
    sql = "SELECT id FROM messages WHERE user_id = :u"
    ((mine,),) = await rows(root.world, sql, u=eve.client.user.id)
    ((his,),) = await rows(root.world, sql, u=bob.user.id)
    assert await eve.opened(mine) == inner(LARGE)
    assert await source(bob, his) == LARGE


async def test_the_copy_in_sent_is_encrypted_and_what_goes_out_is_not(eve: Owner) -> None:
    assert (await change(eve.client, encryptMessages=False))[1] == []
    given = {"mailboxes": [{"specialUse": "SENT"}], "set": {"encryptMessages": True}}
    assert (await run(eve.client, "mailboxUpdate", "task { id }", **given))["errors"] == []
    to = [NamedAddress("carol@example.net")]
    outgoing = SendRequest(to=to, subject="Hi", text=WORDS)
    sent = await submission_create.send_message(context(eve.client), outgoing)
    assert sent.submission is not None
    assert sent.message is not None
    assert WORDS.encode() in await eve.opened(sent.message.id)
    assert await blob_of(eve.client.world, sent.submission.id) != sent.message.blob_id
    draft = SendRequest(to=to, subject="Hi", text=WORDS, is_draft=True)
    kept = await submission_create.send_message(context(eve.client), draft)
    assert kept.message is not None
    assert WORDS.encode() in await source(eve.client, kept.message.id)


async def test_what_another_puts_into_a_folder_is_encrypted_to_its_owner(
    eve: Owner, bob: Client
) -> None:
    assert (await change(eve.client, encryptMessages=False))[1] == []
    await make(context(eve.client), NewMailboxes(["Team"], encrypt_messages=True))
    assert await share(eve.client, bob, "LOOKUP", "READ", "INSERT", "CREATE") == []
    box = {"id": box_id((await eve.client.box("Team")).id)}
    answer = await call(bob, "messageUpload", mailbox=box, raw=PLAIN.decode())
    assert answer["errors"] == []
    assert await eve.opened(global_ids.decode("Message", answer["message"]["id"])) == inner(PLAIN)
    given = {"paths": ["Sub"], "parent": box, "encryptMessages": True}
    (error,) = (await run(bob, "mailboxCreate", "task { id }", **given))["errors"]
    assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["encryptMessages"])


# reading


async def test_a_search_finds_words_of_the_header_alone(eve: Owner, bob: Client) -> None:
    raw = raw_message("Pond", body=WORDS)
    await deliver(eve.client.world, raw, eve.client, bob)
    await index_worker.index_next_batch(eve.client.world)
    assert await found(eve.client, query="pond") == ["Pond"]
    assert await found(eve.client, query="herons") == []
    assert await found(bob, query="herons") == ["Pond"]
    shown = await rows(
        eve.client.world,
        "SELECT preview, encrypted, digest FROM messages WHERE user_id = :u",
        u=eve.client.user.id,
    )
    ((preview, encrypted, digest),) = shown
    assert (preview, bool(encrypted), digest == content_digest(raw)) == ("", True, False)


# settings


async def folder(client: Client, *, on: bool, path: str = "INBOX") -> list[Any]:
    given = {"mailboxes": [{"path": path}], "set": {"encryptMessages": on}}
    fields = "mailboxes { encryptMessages }"
    answer = await run(client, "mailboxUpdate", fields, **given)
    assert answer["errors"] or answer["mailboxes"] == [{"encryptMessages": on}]
    return list(answer["errors"])


async def test_it_takes_a_key_and_holds_it(ada: Client, root: Client) -> None:
    _, (error,) = await change(ada, encryptMessages=True)
    want = ("VALIDATION", ["set", "encryptMessages"], "required")
    assert (error["code"], error["path"], error["constraint"]) == want
    (error,) = await folder(ada, on=True)
    assert (error["code"], error["path"], error["constraint"]) == want
    given = {"paths": ["A"], "encryptMessages": True}
    (error,) = (await run(ada, "mailboxCreate", "task { id }", **given))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["encryptMessages"])
    _, (error,) = await create(root, encryptMessages=True)
    assert (error["code"], error["path"]) == ("VALIDATION", ["encryptMessages"])

    key = public_of(pair_of("Ada"))
    assert (await change(ada, pubKey=key, encryptMessages=True))[1] == []
    assert await folder(ada, on=True) == []
    held = ("CONFLICT", ["set", "pubKey"])
    _, (error,) = await change(ada, pubKey=None)
    assert (error["code"], error["path"]) == held
    _, (error,) = await change(ada, pubKey=None, encryptMessages=False)  # the folder holds it
    assert (error["code"], error["path"]) == held
    assert (await change(ada, encryptMessages=False))[1] == []
    assert await folder(ada, on=False) == []
    assert (await change(ada, pubKey=None))[1] == []


async def test_it_is_shown_and_told(ada: Client, root: Client) -> None:
    key = public_of(pair_of("Ada"))
    before = await reached(ada.world, ada.user.id)
    assert (await change(ada, pubKey=key, encryptMessages=True))[1] == []
    assert await folder(ada, on=True) == []
    told = await events(ada.world, ada.user.id, before)
    assert told[0] == (ChangeKind.USER_CHANGED, [ada.user.id], [["encryptMessages", "pubKey"]])
    assert [kind for kind, *_ in told[1:]] == [ChangeKind.MAILBOX_UPDATED]
    shown = await ada("{ viewer { user { encryptMessages } } }")
    assert shown["viewer"]["user"]["encryptMessages"] is True
    eve, errors = await create(root, pubKey=key, encryptMessages=True)
    assert errors == []
    shown = await root("query ($id: ID!) { user(by: {id: $id}) { encryptMessages } }", id=eve["id"])
    assert shown["user"]["encryptMessages"] is True


async def test_nobody_else_changes_it(eve: Owner, bob: Client) -> None:
    assert (await change(bob, pubKey=public_of(pair_of("Bob"))))[1] == []
    box = box_id((await eve.client.box()).id)
    for user in (None, {"id": global_ids.encode("User", eve.client.user.id)}):
        patch = {"encryptMessages": False}
        given: dict[str, Any] = {"user": user, "mailboxes": [{"id": box}], "set": patch}
        (error,) = (await run(bob, "mailboxUpdate", "task { id }", **given))["errors"]
        assert error["code"] in ("NOT_FOUND", "FORBIDDEN")
    for name, value in (("encryptMessages", False), ("pubKey", None)):
        _, (error,) = await change(bob, eve.client, **{name: value})
        assert error["code"] in ("NOT_FOUND", "FORBIDDEN")
    (placed,) = await deliver(bob.world, PLAIN, eve.client)
    assert await eve.opened(placed.message_id) == inner(PLAIN)

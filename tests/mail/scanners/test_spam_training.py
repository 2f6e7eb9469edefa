"""What users do with their mail is learned behind their backs, and by addresses for that."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mail.scanners import training_worker
from models.addresses.tables import Address, AddressKind
from models.runtime.environment import Environment
from tests.conftest import Client, Clock, raw_message, receive
from tests.support.accounts.key_value_operations import limit
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.lmtp_transactions import deliver_for_reply_codes
from tests.support.mail_servers.scanner_servers import http
from tests.support.operations.spam_operations import (
    MESSAGE_MOVE,
    message_id_by_subject,
    move_message_by_subject,
    stored_training_verdicts,
)
from tests.support.servers.webhook_receiver import Receiver, receiving

pytestmark = pytest.mark.usefixtures("examined")
FLAG = """mutation ($input: MessageUpdateInput!) { messageUpdate(input: $input) {
messages { id } errors { message } } }"""
LEARNED = http(b'{"success":true}')


@pytest.fixture
async def teacher(world: Environment) -> AsyncIterator[Receiver]:
    """A server that learns as rspamd does."""
    async with receiving() as receiver:
        receiver.answer = LEARNED
        limit(world, rspamd_learn=f"http://127.0.0.1:{receiver.port}")
        yield receiver


async def test_what_is_moved_into_junk_and_out_of_it_is_learned(
    ada: Client, teacher: Receiver
) -> None:
    raw = raw_message("Offer")
    await receive(ada, raw)
    await move_message_by_subject(ada, "Offer", specialUse="JUNK")
    assert not teacher.got  # nobody has waited for it
    assert await training_worker.train_batch(ada.world)
    assert [(each.path, each.raw) for each in teacher.got] == [("/learnspam", raw)]
    await move_message_by_subject(ada, "Offer", path="INBOX")
    assert await training_worker.train_batch(ada.world)
    assert teacher.got[1].path == "/learnham"
    assert not await training_worker.train_batch(ada.world)
    assert len(teacher.got) == 2


@pytest.mark.usefixtures("teacher")
async def test_other_moves_say_nothing(ada: Client) -> None:
    for subject in ("One", "Two"):
        await receive(ada, subject)
    await move_message_by_subject(ada, "One", specialUse="SENT")
    await move_message_by_subject(ada, "Two", specialUse="JUNK")
    await training_worker.train_batch(ada.world)
    await move_message_by_subject(ada, "Two", specialUse="TRASH")
    assert await stored_training_verdicts(ada.world) == []
    limit(ada.world, rspamd_learn="")
    await move_message_by_subject(ada, "One", specialUse="JUNK")
    assert await stored_training_verdicts(ada.world) == []


async def test_the_last_word_counts(ada: Client, teacher: Receiver) -> None:
    await receive(ada, "Wavering")
    await move_message_by_subject(ada, "Wavering", specialUse="JUNK")
    await move_message_by_subject(ada, "Wavering", path="INBOX")
    assert await stored_training_verdicts(ada.world) == [False]
    await training_worker.train_batch(ada.world)
    assert [each.path for each in teacher.got] == ["/learnham"]


async def test_who_changes_his_mind_meanwhile_is_heard(ada: Client, teacher: Receiver) -> None:
    await receive(ada, "Wavering")
    await move_message_by_subject(ada, "Wavering", specialUse="JUNK")
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_got: Any, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await go_on.wait()
        writer.write(LEARNED)
        await writer.drain()

    teacher.answer = wait
    lesson = asyncio.create_task(training_worker.train_batch(ada.world))
    await asked.wait()
    await move_message_by_subject(ada, "Wavering", path="INBOX")
    go_on.set()
    assert await lesson
    assert await stored_training_verdicts(ada.world) == [False]
    await training_worker.train_batch(ada.world)
    assert [each.path for each in teacher.got] == ["/learnspam", "/learnham"]


@pytest.mark.parametrize(
    ("keywords", "path"),
    [
        (["$Junk"], "learnspam"),
        (["NonJunk", "x"], "learnham"),
        (["x"], None),
        (["$Junk", "$NotJunk"], None),
    ],
)
async def test_keywords_teach(
    ada: Client, teacher: Receiver, keywords: list[str], path: str | None
) -> None:
    await receive(ada, "Marked")
    ids = list((await message_id_by_subject(ada)).values())
    changed = await ada(FLAG, input={"select": {"ids": ids}, "set": {"addFlags": keywords}})
    assert changed["messageUpdate"]["errors"] == []
    assert await training_worker.train_batch(ada.world) is (path is not None)
    assert [each.path for each in teacher.got] == ([f"/{path}"] if path else [])


@pytest.mark.usefixtures("teacher")
async def test_another_teaches_nothing_with_what_is_not_his(ada: Client, bob: Client) -> None:
    await receive(ada, "Hers")
    ids = list((await message_id_by_subject(ada)).values())
    moved = await bob(MESSAGE_MOVE, input={"select": {"ids": ids}, "to": {"specialUse": "JUNK"}})
    assert [each["message"] for each in moved["messageMove"]["errors"]] == ["no such object"]
    marked = await bob(FLAG, input={"select": {"ids": ids}, "set": {"addFlags": ["$Junk"]}})
    assert [each["message"] for each in marked["messageUpdate"]["errors"]] == ["no such object"]
    assert await stored_training_verdicts(ada.world) == []


async def test_a_filter_that_does_not_answer_is_asked_again(
    ada: Client, teacher: Receiver, clock: Clock
) -> None:
    await receive(ada, "Later")
    await move_message_by_subject(ada, "Later", specialUse="JUNK")
    teacher.answer = http(b"", "503 Busy")
    for pause in (60, 120, 240):
        assert not await training_worker.train_batch(ada.world)
        many = len(teacher.got)
        clock.tick(seconds=pause - 1)
        assert not await training_worker.train_batch(ada.world)
        assert len(teacher.got) == many
        clock.tick(seconds=1)
    teacher.answer = LEARNED
    assert await training_worker.train_batch(ada.world)
    assert await stored_training_verdicts(ada.world) == []


async def test_it_is_given_up_at_last_and_what_is_refused_is_not_asked_again(
    ada: Client, teacher: Receiver, clock: Clock
) -> None:
    for subject in ("Refused", "Lost"):
        await receive(ada, subject)
    await move_message_by_subject(ada, "Refused", specialUse="JUNK")
    teacher.answer = http(b'{"error":"all learn conditions denied"}', "404 Not found")
    assert await training_worker.train_batch(ada.world)
    assert await stored_training_verdicts(ada.world) == []
    await move_message_by_subject(ada, "Lost", specialUse="JUNK")
    teacher.answer = http(b"", "500 Broken")
    for _ in range(training_worker.MAX_ATTEMPTS):
        assert await stored_training_verdicts(ada.world) == [True]
        assert not await training_worker.train_batch(ada.world)
        clock.tick(seconds=training_worker.MAX_RETRY_DELAY.total_seconds())
    assert await stored_training_verdicts(ada.world) == []


async def test_what_goes_before_it_is_learned_is_forgotten(ada: Client, teacher: Receiver) -> None:
    await receive(ada, "Gone")
    await move_message_by_subject(ada, "Gone", specialUse="JUNK")
    ids = list((await message_id_by_subject(ada)).values())
    gone = await ada(
        """mutation ($input: MessageDeleteInput!) { messageDelete(input: $input) {
        errors { message } } }""",
        input={"select": {"ids": ids}, "permanent": True},
    )
    assert gone["messageDelete"]["errors"] == []
    assert await stored_training_verdicts(ada.world) == []
    assert not await training_worker.train_batch(ada.world)
    assert not teacher.got


async def test_what_is_encrypted_teaches_nothing(ada: Client, teacher: Receiver) -> None:
    kind = "application/pkcs7-mime; smime-type=enveloped-data; name=smime.p7m"
    await receive(ada, raw_message("Sealed", body="AAAA", Content_Type=kind, MIME_Version="1.0"))
    await move_message_by_subject(ada, "Sealed", specialUse="JUNK")
    assert await training_worker.train_batch(ada.world)
    assert not teacher.got
    assert await stored_training_verdicts(ada.world) == []


async def test_the_worker_hears_the_bell(ada: Client, teacher: Receiver) -> None:
    worker = asyncio.create_task(training_worker.run_worker(ada.world))
    try:
        await receive(ada, "Offer")
        await move_message_by_subject(ada, "Offer", specialUse="JUNK")
        async with asyncio.timeout(10):
            await teacher.wait(1)
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    await training_worker.train_batch(ada.world)


@pytest.mark.usefixtures("teacher")
async def test_a_move_costs_the_same_for_many(ada: Client, statements: list[str]) -> None:
    async def cost(many: int) -> int:
        for nth in range(many):
            await receive(ada, f"Of {many}: {nth}")
        found = await message_id_by_subject(ada)
        ids = [key for subject, key in found.items() if subject.startswith(f"Of {many}:")]
        del statements[:]
        moved = await ada(
            MESSAGE_MOVE, input={"select": {"ids": ids}, "to": {"specialUse": "JUNK"}}
        )
        assert int(moved["messageMove"]["movedCount"]) == many
        return len(statements)

    await cost(2)  # what is looked up once, is
    assert await cost(1) == await cost(20)
    assert len(await stored_training_verdicts(ada.world)) == 23


async def learning_address(world: Environment, name: str, kind: AddressKind) -> None:
    key = await add_forwarding_address(world, name)
    async with world.write_session() as session:
        address = await session.get_one(Address, key)
        address.kind = kind


async def test_addresses_learn_what_comes_to_them(
    ada: Client, teacher: Receiver, neighbour: Neighbour
) -> None:
    await learning_address(ada.world, "spam", AddressKind.LEARN_SPAM)
    await learning_address(ada.world, "ham", AddressKind.LEARN_HAM)
    raw = raw_message("Report")
    told = await deliver_for_reply_codes(neighbour, raw, "spam@example.org", ada.address)
    assert told == ["250 2.0.0"] * 2
    assert [(each.path, each.raw) for each in teacher.got] == [("/learnspam", raw)]
    assert list(await message_id_by_subject(ada)) == ["Report"]
    parts = [raw_message("First"), raw_message("Second")]
    body = b"".join(
        b"--b\r\nContent-Type: message/rfc822\r\n\r\n" + part + b"\r\n" for part in parts
    )
    kind = 'multipart/mixed; boundary="b"'
    whole = raw_message("Two", body="", Content_Type=kind, MIME_Version="1.0") + body + b"--b--\r\n"
    assert await deliver_for_reply_codes(neighbour, whole, "ham@example.org") == ["250 2.0.0"]
    assert [(each.path, each.raw) for each in teacher.got[1:]] == [
        ("/learnham", part) for part in parts
    ]


async def test_an_address_whose_filter_is_down_takes_it_later(
    ada: Client, teacher: Receiver, neighbour: Neighbour
) -> None:
    await learning_address(ada.world, "spam", AddressKind.LEARN_SPAM)
    await add_forwarding_address(ada.world, "abuse", "spam@example.org")
    teacher.answer = http(b"", "500 Broken")
    raw = raw_message("Report")
    assert await deliver_for_reply_codes(neighbour, raw, "spam@example.org") == ["451 4.3.0"]
    teacher.answer = LEARNED
    assert await deliver_for_reply_codes(neighbour, raw, "abuse@example.org") == ["250 2.0.0"]
    limit(ada.world, rspamd_learn="")
    await neighbour.say("MAIL FROM:<carol@example.net>")
    assert (await neighbour.say("RCPT TO:<spam@example.org>"))[:9] == "550 5.1.1"


@pytest.mark.usefixtures("ada", "teacher")
async def test_such_addresses_are_made_where_there_is_a_filter_that_learns(root: Client) -> None:
    create = """mutation ($input: AddressCreateInput!) { addressCreate(input: $input) {
    address { kind } errors { message path } } }"""
    given = {"address": "spam@example.org", "kind": "LEARN_SPAM"}
    made = (await root(create, input=given))["addressCreate"]
    assert made == {"address": {"kind": "LEARN_SPAM"}, "errors": []}
    limit(root.world, rspamd_learn="")
    again = {"address": "more@example.org", "kind": "LEARN_SPAM"}
    refused = (await root(create, input=again))["addressCreate"]
    assert refused["address"] is None
    assert [each["path"] for each in refused["errors"]] == [["kind"]]

"""rspamd and clamd themselves, with mail that comes by LMTP and SMTP: what they find and learn."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from bench.servers.bus_servers import BrokerProcess
from graph.types import global_ids
from mail.scanners import clamd as asking_clamd
from mail.scanners import rspamd as asking_rspamd
from mail.scanners import training_worker
from mail.scanners.body_stream import scan_body
from mail.scanners.circuit_breaker import MessageTooLargeForScanner, ScannerUnavailable
from mail.scanners.http_client import post_to_scanner
from mail.scanners.rspamd import RspamdEndpoint, ScanEnvelope
from mail.scanners.rspamd_training import TRAINED_MESSAGES
from models.mailboxes.tables import SpecialUse
from tests.conftest import Client, raw_message, receive
from tests.support.accounts.key_value_operations import limit
from tests.support.mail.dsn_messages import DSN_SENDER, NOTIFY_ALL
from tests.support.mail.inbound_authentication import use_dns_zone
from tests.support.mail.queued_deliveries import only_queued_dsn, queued_dsn_requests
from tests.support.mail.stored_messages import message_special_use
from tests.support.mail_servers.dns_zone_server import asking, zone
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.lmtp_transactions import deliver_for_reply_codes
from tests.support.mail_servers.mx_session import open_mx_session
from tests.support.mail_servers.queue_worker import inbox
from tests.support.mail_servers.scanner_servers import EICAR, GTUBE, PASSWORD, clamd, rspamd
from tests.support.operations.domain_operations import done
from tests.support.operations.quarantine_operations import RELEASE, held
from tests.support.operations.spam_operations import (
    SPAM_VERDICT_QUERY,
    move_message_by_subject,
    stored_training_verdicts,
)

pytestmark = pytest.mark.usefixtures("examined")
VIRUS = raw_message(
    "Ill", body=base64.encodebytes(EICAR).decode(), MIME_Version="1.0",
    Content_Type="application/octet-stream; name=x.com", Content_Transfer_Encoding="base64",
    Content_Disposition="attachment; filename=x.com",
)  # fmt: skip
LETTER = "The heron stood in the shallow water at dawn and waited, as patient as a stone."


@pytest.fixture(scope="module")
def filter_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Where rspamd judges, and where it learns."""
    real, store, learns = rspamd(tmp_path_factory.mktemp("rspamd"))
    try:
        store.start()
        real.start()
        yield real.url, learns
    finally:
        real.stop()
        store.stop()


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    real = clamd(tmp_path_factory.mktemp("clamd"))
    try:
        real.start()
        yield real
    finally:
        real.stop()


async def test_rspamd_judges_what_comes(
    ada: Client, neighbour: Neighbour, filter_: tuple[str, str]
) -> None:
    limit(ada.world, rspamd=filter_[0], rspamd_down="defer")
    assert await deliver_for_reply_codes(
        neighbour, raw_message("Dawn", body=LETTER), ada.address
    ) == ["250 2.0.0"]
    assert await deliver_for_reply_codes(
        neighbour, raw_message("Test", body=GTUBE), ada.address
    ) == ["550 5.7.1"]
    assert await message_special_use(ada, "Dawn") is SpecialUse.INBOX
    assert await message_special_use(ada, "Test") is None
    listed = await ada("query { messages(first: 1) { nodes { id } } }")
    told = (await ada(SPAM_VERDICT_QUERY, id=listed["messages"]["nodes"][0]["id"]))["message"][
        "spam"
    ]
    assert told["score"] < 8 < told["requiredScore"] == 15
    assert "MIME_TRACE" in {each["name"] for each in told["symbols"]}


async def offered(client: Neighbour, mail: str, rcpt: str, sender: str) -> None:
    """Hand in what rspamd calls spam; it is taken. Its subject is what is asked for."""
    raw = raw_message(mail, body=GTUBE, From=sender)
    assert (await client.say(f"MAIL FROM:<{sender}> {mail}")).startswith("250")
    assert (await client.say(f"RCPT TO:{rcpt}")).startswith("250")
    assert (await client.say("DATA")).startswith("354")
    client.send(raw + b".\r\n")
    assert (await client.hear()).startswith("250")


async def test_what_rspamd_has_held_is_told_of_when_it_is_let_in(
    ada: Client, filter_: tuple[str, str], tmp_path: Path
) -> None:
    """By SMTP: SPF says who the sender is, rspamd that it is spam, and a human that it is not."""
    world, there = ada.world, zone({"example.net": "v=spf1 ip4:127.0.0.1 -all"})
    async with asking(there):
        use_dns_zone(world, there, rspamd=filter_[0], rspamd_down="defer", spam_quarantine=10)
        async with open_mx_session(world, tmp_path) as client:
            wants = f"<{ada.address}> {NOTIFY_ALL} ORCPT=rfc822;first@example.com"
            await offered(client, "ENVID=No+2B1 RET=HDRS", wants, DSN_SENDER)
            await offered(client, "ENVID=2", f"<{ada.address}> NOTIFY=NEVER", DSN_SENDER)
            await offered(client, "ENVID=3", f"<{ada.address}> {NOTIFY_ALL}", "eve@unsure.example")
    items = await held(world)
    assert [(one.subject, one.score >= 10) for one in items] == [
        ("ENVID=No+2B1 RET=HDRS", True), ("ENVID=2", True), ("ENVID=3", True)
    ]  # fmt: skip
    assert "GTUBE" in {symbol["name"] for symbol in items[0].symbols}
    assert (await queued_dsn_requests(world), await inbox(ada)) == ([], [])
    for item in items:
        given = [global_ids.encode("QuarantineItem", item.id)]
        assert (await done(ada, RELEASE, ids=given))[1] == []
    assert len(await inbox(ada)) == 3
    assert await queued_dsn_requests(world) == [("", DSN_SENDER, "NEVER")]
    about, (row,), subject = await only_queued_dsn(world)
    assert (subject, about["Original-Envelope-Id"]) == ("Your message was delivered", "No+1")
    assert row["Original-Recipient"] == "rfc822;first@example.com"
    assert (row["Final-Recipient"], row["Action"]) == (f"rfc822; {ada.address}", "delivered")


async def test_rspamd_is_told_of_sender_and_recipients(filter_: tuple[str, str]) -> None:
    raw = raw_message("Way", body=LETTER, Return_Path="")
    body = scan_body(raw, len(raw))
    at = RspamdEndpoint(filter_[0])
    names = []
    for sender, to in (
        ("carol@example.com", "ada@example.org"),
        ("eve@far.example", "x@y.example"),
    ):
        scan = await asking_rspamd.scan_for_spam(at, ScanEnvelope(sender, [to]), body)
        names.append({each.name for each in scan.symbols})
    told = {"FROM_NEQ_ENVFROM", "FORGED_RECIPIENTS"}
    assert [each & told for each in names] == [set(), told]


async def test_rspamd_learns_from_a_move(ada: Client, filter_: tuple[str, str]) -> None:
    world, (_, learns) = ada.world, filter_
    limit(world, rspamd_learn=learns, rspamd_password=SecretStr(PASSWORD))
    words = " ".join(f"pill{nth} bargain{nth}" for nth in range(40))
    offer = raw_message("Bargain", body=words)
    await receive(ada, offer)
    before = TRAINED_MESSAGES.value("spam", "learned")
    await move_message_by_subject(ada, "Bargain", specialUse="JUNK")
    assert await training_worker.train_batch(world)
    assert await stored_training_verdicts(world) == []
    assert TRAINED_MESSAGES.value("spam", "learned") == before + 1
    at = RspamdEndpoint(learns, SecretStr(PASSWORD))
    again = await post_to_scanner(
        at.command_target("learnspam"), at.auth_fields, scan_body(offer, len(offer))
    )
    assert (again.status, b"already learned as spam" in again.body) == (208, True)
    await move_message_by_subject(ada, "Bargain", path="INBOX")
    assert await training_worker.train_batch(world)
    again = await post_to_scanner(
        at.command_target("learnham"), at.auth_fields, scan_body(offer, len(offer))
    )
    assert (again.status, b"already learned as ham" in again.body) == (208, True)


async def test_rspamd_teaches_nobody_without_its_password(filter_: tuple[str, str]) -> None:
    raw = raw_message("Once")
    body = scan_body(raw, len(raw))
    with pytest.raises(ScannerUnavailable, match="status 401"):
        await asking_rspamd.train(
            RspamdEndpoint(filter_[1], SecretStr("wrong")), body, is_spam=True
        )


async def test_clamd_finds_what_it_knows(
    ada: Client, neighbour: Neighbour, searcher: BrokerProcess
) -> None:
    for place in (searcher.url, f"unix:{searcher.folder}/clamd.sock"):
        limit(ada.world, clamd=place, clamd_down="defer")
        assert await deliver_for_reply_codes(neighbour, VIRUS, ada.address) == ["550 5.7.1"]
        well = raw_message(f"Well {place}")
        assert await deliver_for_reply_codes(neighbour, well, ada.address) == ["250 2.0.0"]
    limit(ada.world, virus="tag")
    assert await deliver_for_reply_codes(neighbour, VIRUS, ada.address) == ["250 2.0.0"]
    assert await message_special_use(ada, "Ill") is SpecialUse.JUNK


async def test_clamd_says_when_it_is_too_much(searcher: BrokerProcess) -> None:
    raw = b"x" * (20 << 20)
    for _ in range(5):
        with pytest.raises(MessageTooLargeForScanner):
            await asking_clamd.scan_for_virus(searcher.url, scan_body(raw, len(raw)))


async def test_a_scanner_that_dies_loses_no_mail(
    ada: Client, neighbour: Neighbour, tmp_path: Path
) -> None:
    (tmp_path / "dying").mkdir()
    real = clamd(tmp_path / "dying")
    real.start()
    try:
        limit(ada.world, clamd=real.url)
        assert await deliver_for_reply_codes(neighbour, raw_message("Before"), ada.address) == [
            "250 2.0.0"
        ]
    finally:
        real.stop()
    assert await deliver_for_reply_codes(neighbour, raw_message("Behind"), ada.address) == [
        "250 2.0.0"
    ]
    limit(ada.world, clamd_down="defer")
    assert await deliver_for_reply_codes(neighbour, raw_message("Later"), ada.address) == [
        "451 4.3.0"
    ]
    assert [
        await message_special_use(ada, each) is not None for each in ("Before", "Behind", "Later")
    ] == [
        True,
        True,
        False,
    ]

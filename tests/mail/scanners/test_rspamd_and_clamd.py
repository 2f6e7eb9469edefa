"""Scanning and training with running rspamd and clamd processes."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from bench.servers.bus_servers import BrokerProcess
from graph.types import global_ids
from mail.scanners import clamd as clamd_client
from mail.scanners import rspamd as rspamd_client
from mail.scanners import training_worker
from mail.scanners.body_stream import body_for_scanner
from mail.scanners.circuit_breaker import MessageTooLargeForScanner, ScannerUnavailable
from mail.scanners.http_client import post_to_scanner
from mail.scanners.rspamd import RspamdEndpoint, ScanEnvelope
from mail.scanners.rspamd_training import TRAINED_MESSAGES
from models.mailboxes.tables import SpecialUse
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.mail.dsn_messages import DSN_SENDER, NOTIFY_ALL
from tests.support.mail.inbound_authentication import use_dns_zone
from tests.support.mail.queued_deliveries import only_queued_dsn, queued_dsn_requests
from tests.support.mail.stored_messages import message_special_use
from tests.support.mail_servers.dns_zone_server import make_dns_zone, run_dns_zone
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.lmtp_transactions import deliver_for_reply_codes
from tests.support.mail_servers.mx_session import open_mx_session
from tests.support.mail_servers.queue_worker import load_inbox_rows
from tests.support.mail_servers.scanner_servers import (
    CONTROLLER_PASSWORD,
    EICAR,
    GTUBE,
    make_clamd_process,
    make_rspamd_processes,
)
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.id_references import id_refs
from tests.support.operations.quarantine_operations import QUARANTINE_RELEASE, load_quarantine_rows
from tests.support.operations.spam_operations import (
    SPAM_VERDICT_QUERY,
    move_message_by_subject,
    stored_training_verdicts,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")
VIRUS_MESSAGE = raw_message(
    "Ill", body=base64.encodebytes(EICAR).decode(), MIME_Version="1.0",
    Content_Type="application/octet-stream; name=x.com", Content_Transfer_Encoding="base64",
    Content_Disposition="attachment; filename=x.com",
)  # fmt: skip
HARMLESS_TEXT = "The heron stood in the shallow water at dawn and waited, as patient as a stone."


@pytest.fixture(scope="module")
def rspamd_urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Run rspamd and yield its URLs for scans and for training."""
    process, store_process, training_url = make_rspamd_processes(tmp_path_factory.mktemp("rspamd"))
    try:
        store_process.start()
        process.start()
        yield process.url, training_url
    finally:
        process.stop()
        store_process.stop()


@pytest.fixture(scope="module")
def clamd_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    process = make_clamd_process(tmp_path_factory.mktemp("clamd"))
    try:
        process.start()
        yield process
    finally:
        process.stop()


async def test_rspamd_verdict_decides_delivery(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, rspamd_urls: tuple[str, str]
) -> None:
    change_options(ada.environment, rspamd_url=rspamd_urls[0], rspamd_on_failure="defer")
    assert await deliver_for_reply_codes(
        lmtp_client, raw_message("Dawn", body=HARMLESS_TEXT), ada.address
    ) == ["250 2.0.0"]
    assert await deliver_for_reply_codes(
        lmtp_client, raw_message("Test", body=GTUBE), ada.address
    ) == ["550 5.7.1"]
    assert await message_special_use(ada, "Dawn") is SpecialUse.INBOX
    assert await message_special_use(ada, "Test") is None
    result = await ada("query { messages(first: 1) { nodes { id } } }")
    spam = (await ada(SPAM_VERDICT_QUERY, id=result["messages"]["nodes"][0]["id"]))["message"][
        "spamReport"
    ]
    assert spam["score"] < 8 < spam["requiredScore"] == 15
    assert "MIME_TRACE" in {symbol["name"] for symbol in spam["symbols"]}


async def submit_spam(client: SmtpTestClient, mail_parameters: str, rcpt: str, sender: str) -> None:
    """Submit a message that rspamd calls spam, with the MAIL parameters as its subject."""
    raw = raw_message(mail_parameters, body=GTUBE, From=sender)
    assert (await client.run_command(f"MAIL FROM:<{sender}> {mail_parameters}")).startswith("250")
    assert (await client.run_command(f"RCPT TO:{rcpt}")).startswith("250")
    assert (await client.run_command("DATA")).startswith("354")
    client.send_bytes(raw + b".\r\n")
    assert (await client.read_reply()).startswith("250")


async def test_release_from_quarantine_sends_requested_dsn(
    ada: GraphQLClient, rspamd_urls: tuple[str, str], tmp_path: Path
) -> None:
    """The sender passed SPF, so that a success DSN can be sent after the release."""
    environment = ada.environment
    dns_zone = make_dns_zone({"example.net": "v=spf1 ip4:127.0.0.1 -all"})
    async with run_dns_zone(dns_zone):
        use_dns_zone(
            environment,
            dns_zone,
            rspamd_url=rspamd_urls[0],
            rspamd_on_failure="defer",
            spam_quarantine_score=10,
        )
        async with open_mx_session(environment, tmp_path) as client:
            rcpt = f"<{ada.address}> {NOTIFY_ALL} ORCPT=rfc822;first@example.com"
            await submit_spam(client, "ENVID=No+2B1 RET=HDRS", rcpt, DSN_SENDER)
            await submit_spam(client, "ENVID=2", f"<{ada.address}> NOTIFY=NEVER", DSN_SENDER)
            await submit_spam(
                client, "ENVID=3", f"<{ada.address}> {NOTIFY_ALL}", "eve@unsure.example"
            )
    items = await load_quarantine_rows(environment)
    assert [(item.subject, item.score >= 10) for item in items] == [
        ("ENVID=No+2B1 RET=HDRS", True), ("ENVID=2", True), ("ENVID=3", True)
    ]  # fmt: skip
    assert "GTUBE" in {symbol["name"] for symbol in items[0].symbols}
    assert (await queued_dsn_requests(environment), await load_inbox_rows(ada)) == ([], [])
    for item in items:
        item_ids = [global_ids.encode("QuarantineItem", item.id)]
        assert (await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=id_refs(item_ids)))[
            1
        ] == []
    assert len(await load_inbox_rows(ada)) == 3
    assert await queued_dsn_requests(environment) == [("", DSN_SENDER, "NEVER")]
    message_fields, (row,), subject = await only_queued_dsn(environment)
    assert (subject, message_fields["Original-Envelope-Id"]) == (
        "Your message was delivered",
        "No+1",
    )
    assert row["Original-Recipient"] == "rfc822;first@example.com"
    assert (row["Final-Recipient"], row["Action"]) == (f"rfc822; {ada.address}", "delivered")


async def test_rspamd_receives_sender_and_recipients(rspamd_urls: tuple[str, str]) -> None:
    raw = raw_message("Way", body=HARMLESS_TEXT, Return_Path="")
    body = body_for_scanner(raw, len(raw))
    endpoint = RspamdEndpoint(rspamd_urls[0])
    symbol_names = []
    for sender, recipient in (
        ("carol@example.com", "ada@example.org"),
        ("eve@far.example", "x@y.example"),
    ):
        scan = await rspamd_client.scan_for_spam(endpoint, ScanEnvelope(sender, [recipient]), body)
        symbol_names.append({item.name for item in scan.symbols})
    envelope_symbols = {"FROM_NEQ_ENVFROM", "FORGED_RECIPIENTS"}
    assert [item & envelope_symbols for item in symbol_names] == [set(), envelope_symbols]


async def test_rspamd_learns_from_move(ada: GraphQLClient, rspamd_urls: tuple[str, str]) -> None:
    environment, (_, training_url) = ada.environment, rspamd_urls
    change_options(
        environment, rspamd_learn_url=training_url, rspamd_password=SecretStr(CONTROLLER_PASSWORD)
    )
    spam_words = " ".join(f"pill{nth} bargain{nth}" for nth in range(40))
    offer = raw_message("Bargain", body=spam_words)
    await deliver_to(ada, offer)
    count_before = TRAINED_MESSAGES.value("spam", "learned")
    await move_message_by_subject(ada, "Bargain", specialUse="JUNK")
    assert await training_worker.try_train_with_next_messages(environment)
    assert await stored_training_verdicts(environment) == []
    assert TRAINED_MESSAGES.value("spam", "learned") == count_before + 1
    endpoint = RspamdEndpoint(training_url, SecretStr(CONTROLLER_PASSWORD))
    response = await post_to_scanner(
        endpoint.command_target("learnspam"),
        endpoint.auth_fields,
        body_for_scanner(offer, len(offer)),
    )
    assert (response.status, b"already learned as spam" in response.body) == (208, True)
    await move_message_by_subject(ada, "Bargain", path="INBOX")
    assert await training_worker.try_train_with_next_messages(environment)
    response = await post_to_scanner(
        endpoint.command_target("learnham"),
        endpoint.auth_fields,
        body_for_scanner(offer, len(offer)),
    )
    assert (response.status, b"already learned as ham" in response.body) == (208, True)


async def test_rspamd_training_needs_password(rspamd_urls: tuple[str, str]) -> None:
    raw = raw_message("Once")
    body = body_for_scanner(raw, len(raw))
    with pytest.raises(ScannerUnavailable, match="status 401"):
        await rspamd_client.try_train_with_message(
            RspamdEndpoint(rspamd_urls[1], SecretStr("wrong")), body, is_spam=True
        )


async def test_virus_found_by_clamd_is_refused(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, clamd_process: BrokerProcess
) -> None:
    for clamd_address in (clamd_process.url, f"unix:{clamd_process.folder}/clamd.sock"):
        change_options(ada.environment, clamd_address=clamd_address, clamd_on_failure="defer")
        assert await deliver_for_reply_codes(lmtp_client, VIRUS_MESSAGE, ada.address) == [
            "550 5.7.1"
        ]
        clean_message = raw_message(f"Well {clamd_address}")
        assert await deliver_for_reply_codes(lmtp_client, clean_message, ada.address) == [
            "250 2.0.0"
        ]
    change_options(ada.environment, virus_action="tag")
    assert await deliver_for_reply_codes(lmtp_client, VIRUS_MESSAGE, ada.address) == ["250 2.0.0"]
    assert await message_special_use(ada, "Ill") is SpecialUse.JUNK


async def test_clamd_size_limit_raises_message_too_large(clamd_process: BrokerProcess) -> None:
    raw = b"x" * (20 << 20)
    for _ in range(5):
        with pytest.raises(MessageTooLargeForScanner):
            await clamd_client.scan_for_virus(clamd_process.url, body_for_scanner(raw, len(raw)))


async def test_stopped_scanner_loses_no_message(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, tmp_path: Path
) -> None:
    (tmp_path / "dying").mkdir()
    process = make_clamd_process(tmp_path / "dying")
    process.start()
    try:
        change_options(ada.environment, clamd_address=process.url)
        assert await deliver_for_reply_codes(lmtp_client, raw_message("Before"), ada.address) == [
            "250 2.0.0"
        ]
    finally:
        process.stop()
    assert await deliver_for_reply_codes(lmtp_client, raw_message("Behind"), ada.address) == [
        "250 2.0.0"
    ]
    change_options(ada.environment, clamd_on_failure="defer")
    assert await deliver_for_reply_codes(lmtp_client, raw_message("Later"), ada.address) == [
        "451 4.3.0"
    ]
    assert [
        await message_special_use(ada, subject) is not None
        for subject in ("Before", "Behind", "Later")
    ] == [
        True,
        True,
        False,
    ]

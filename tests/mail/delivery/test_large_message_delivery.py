"""Delivery of large messages: every byte arrives, and no spool file remains."""

import base64
import os
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mail.authentication import arc
from mail.authentication.dkim import AuthResult, SignedMessage
from mail.authentication.dns_queries import MessageDns
from mail.delivery.listener_backend import LocalBackend
from mail.mime.parser import MAX_PARTS
from mail.smtp import lmtp
from mail.storage import header_prepend
from models.errors import OverQuota
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail.forwarding_addresses import (
    FORWARD_TARGET,
    add_forwarding_address,
    set_account_forwarding,
)
from tests.support.mail.inbound_authentication import use_dns_zone
from tests.support.mail.signed_messages import make_rsa_key, sign_message
from tests.support.mail.stored_messages import stored_messages_by_path
from tests.support.mail_servers.dns_zone_server import make_dns_zone, run_dns_zone
from tests.support.mail_servers.lmtp_client import SmtpTestClient, connect_lmtp
from tests.support.mail_servers.queue_worker import poll_until, relay_settings, run_queue_worker
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.sieve_operations import put_sieve_script

PART_FILE_NAME = re.compile(r"incoming-1\.[0-9a-f]{64}(\.zst)?")
pytestmark = pytest.mark.usefixtures("verify_consistency")
SENDER = "carol@far.example"
FILE_BASE64 = base64.encodebytes(bytes(range(256)) * 5000).replace(b"\n", b"\r\n")
FILE_MESSAGE = (
    b"Subject: File\r\nBcc: eve@else.example\r\nContent-Type: application/pdf\r\n"
    b"Content-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\n" + FILE_BASE64
)
LARGE_MESSAGES = {
    "with a file": FILE_MESSAGE,
    "without a field": b" folded: x\r\nno field\r\n\r\n" + FILE_BASE64,
    "of too many parts": (
        b"Subject: Parts\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        + b"--b\r\n\r\nx\r\n" * (MAX_PARTS + 1) + b"--b--\r\n" + FILE_BASE64
    ),
    "with dots": b"Subject: Dots\r\n\r\n" + (b".\r\n.." + b"a" * 60 + b"\r\nb.\r\n") * 25_000,
}  # fmt: skip


@pytest.fixture
async def lmtp_client(environment: Environment, tmp_path: Path) -> AsyncIterator[SmtpTestClient]:
    listener = await lmtp.start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    lmtp_client = await connect_lmtp(listener.port)
    yield lmtp_client
    await lmtp_client.close()
    await listener.close(1)
    assert not list((tmp_path / "spool").iterdir())


async def deliver_message(
    lmtp_client: SmtpTestClient, raw: bytes, to: str = "ada@example.org"
) -> str:
    await lmtp_client.start_data(to, sender=SENDER)
    dot_stuffed = raw.replace(b"\n.", b"\n..")
    lmtp_client.send_bytes((b"." if raw.startswith(b".") else b"") + dot_stuffed + b".\r\n")
    return (await lmtp_client.read_reply())[:9]


async def take_received_message(server: FakeSmtpServer) -> bytes:
    async def has_message() -> bool:
        return bool(server.messages)

    await poll_until(has_message)
    return server.messages.pop().raw


def server_without_size_limit() -> FakeSmtpServer:
    return FakeSmtpServer(smtp_options={"enable_SMTPUTF8": True, "data_size_limit": None})


@pytest.mark.parametrize("message_kind", LARGE_MESSAGES)
async def test_large_message_is_stored_and_forwarded_unchanged(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, message_kind: str, tmp_path: Path
) -> None:
    raw = LARGE_MESSAGES[message_kind]
    await set_account_forwarding(ada, FORWARD_TARGET)
    async with (
        run_smtp_server(server_without_size_limit()) as smtp_server,
        run_queue_worker(ada.environment, relay_settings(smtp_server)),
    ):
        assert await deliver_message(lmtp_client, raw) == "250 2.0.0"
        assert not list((tmp_path / "spool").iterdir())
        sent = await take_received_message(smtp_server)
    # a leading folded line must not continue our field
    raw = (b"\r\n" if raw.startswith(b" ") else b"") + raw
    without_bcc = raw.replace(b"Bcc: eve@else.example\r\n", b"")
    assert sent == b"Delivered-To: ada@example.org\r\n" + without_bcc
    ((row, stored),) = (await stored_messages_by_path(ada)).values()
    assert stored == (
        b"Return-Path: <carol@far.example>\r\nDelivered-To: ada@example.org\r\n"
        b"X-Original-Rcpt: ada@example.org\r\n" + raw
    )
    assert row.size == len(stored)


async def test_sieve_edits_the_header_of_a_large_message(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, tmp_path: Path
) -> None:
    await put_sieve_script(
        ada,
        'require ["editheader", "fileinto", "copy", "mailbox"];'
        'fileinto :create "Bare"; addheader "X-Mine" "1"; redirect :copy "dave@far.example"; keep;',
    )
    async with (
        run_smtp_server(server_without_size_limit()) as smtp_server,
        run_queue_worker(ada.environment, relay_settings(smtp_server)),
    ):
        assert await deliver_message(lmtp_client, FILE_MESSAGE) == "250 2.0.0"
        assert not list((tmp_path / "spool").iterdir())
        sent = await take_received_message(smtp_server)
    without_bcc = FILE_MESSAGE.replace(b"Bcc: eve@else.example\r\n", b"")
    assert sent == b"Delivered-To: ada@example.org\r\nX-Mine: 1\r\n" + without_bcc
    stored_by_path = {
        path: stored for path, (_, stored) in (await stored_messages_by_path(ada)).items()
    }
    assert stored_by_path["INBOX"].endswith(b"\r\nX-Mine: 1\r\n" + FILE_MESSAGE)
    assert stored_by_path["Bare"].endswith(b"Rcpt: ada@example.org\r\n" + FILE_MESSAGE)


async def test_arc_seal_of_a_large_message_is_valid(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, tmp_path: Path
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    key = folder / "s._domainkey.example.org.pem"
    key.write_bytes(make_rsa_key()[0])
    key.chmod(0o600)
    dns_server = make_dns_zone(
        {f"s._domainkey.{domain}": make_rsa_key()[1] for domain in ("far.example", "example.org")}
    )
    async with (
        run_dns_zone(dns_server) as dns_address,
        run_smtp_server(server_without_size_limit()) as smtp_server,
    ):
        use_dns_zone(
            ada.environment, dns_server, authentication_check="all", arc_keys_folder=folder
        )
        await add_forwarding_address(ada.environment, "list", FORWARD_TARGET)
        async with run_queue_worker(ada.environment, relay_settings(smtp_server)):
            raw = sign_message(b"From: a@far.example\r\n" + FILE_MESSAGE)
            assert await deliver_message(lmtp_client, raw, "list@example.org") == "250 2.0.0"
            sent = await take_received_message(smtp_server)
        arc_chain = await arc.check_chain(
            MessageDns(dns_address), SignedMessage.from_bytes(sent), 0
        )
    assert (arc_chain.result, arc_chain.sealer_domains) == (AuthResult.PASS, ["example.org"])
    assert b"\r\r" not in sent[:2000]  # the field list spans several lines
    assert b"dkim=pass" in arc_chain.arc_sets[0].results.raw


@pytest.mark.parametrize("quota", [None, 1_000_000])
async def test_temporary_files_are_removed_after_delivery_or_refusal(
    ada: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    tmp_path: Path,
    quota: int | None,
) -> None:
    await put_sieve_script(
        ada, 'require "editheader"; addheader "X-Mine" "1"; redirect "dave@far.example";'
    )
    if quota:
        await put_sieve_script(ada, 'require "editheader"; addheader "X-Mine" "1"; keep;')
        user_refs, changes = {"usernames": ["ada"]}, {"quota": quota}
        assert (await execute_mutation(root, "userUpdate", users=user_refs, set=changes))[
            "errors"
        ] == []
    path = tmp_path / "incoming-1"
    path.write_bytes(FILE_MESSAGE)
    backend = LocalBackend(environment)
    (outcome,) = await backend.deliver(
        path, [await backend.accept_recipient(ada.address, SENDER)], SENDER
    )
    assert isinstance(outcome, OverQuota) is bool(quota)
    remaining = [name for name in os.listdir(tmp_path) if name.startswith("incoming-1")]  # noqa: PTH208 - names of all files
    assert [name for name in remaining if not PART_FILE_NAME.fullmatch(name)] == ["incoming-1"]


async def test_rewritten_spool_file_and_its_parts_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "incoming-1"
    path.write_bytes(b"Subject: a\r\n\r\nb")
    with ExitStack() as files:
        rewritten = await header_prepend.copy_with_new_beginning(path, b"X: y\r\n", 12, files)
        assert isinstance(rewritten, Path)
        assert rewritten.read_bytes() == b"X: y\r\n\r\nb"
        # the name prefix lets cleanup after a crash find the file
        assert rewritten.name.startswith("incoming-1.")
        rewritten.with_name(f"{rewritten.name}.piece").write_bytes(b"")
    assert [name for name in os.listdir(tmp_path) if "incoming" in name] == [path.name]  # noqa: PTH208

"""Verification, marking, spam judgement and sealing of received mail, with servers on loopback."""

import os
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import authres
import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.authentication import arc
from mail.authentication.dkim import AuthResult
from mail.authentication.dkim import SignedMessage as Signed
from mail.authentication.dns_queries import MessageDns
from mail.authentication.header_fields import parse_well_formed_fields_and_crlf_body
from mail.authentication.results_removal import remove_authentication_results_of_servers
from mail.delivery import pipeline
from mail.envelope.client import SmtpClientInfo as Peer
from mail.inbound.sender_verification import RejectedByDmarc
from mail.smtp.replies import reply_from_error
from models.messages.tables import Message
from models.runtime.environment import CommittedOptions
from tests.conftest import GraphQLClient
from tests.support.mail import signed_messages
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.inbound_authentication import (
    FAR_PEER,
    FAR_SENDER,
    deliver_from_peer,
    message_verification,
    use_dns_zone,
)
from tests.support.mail.signed_messages import UNSIGNED_MESSAGE, make_rsa_key, sign_message
from tests.support.mail.trace_header_lines import without_trace_fields
from tests.support.mail_servers.dns_zone_server import DnsZoneServer, make_dns_zone, run_dns_zone
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.queue_worker import poll_until, relay_settings, run_queue_worker
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.platform.setting_operations import expect_refused_setting, set_setting

STRANGER_PEER = Peer("198.51.100.1", "mx.evil.example", "TLSv1.3 TLS_AES_256_GCM_SHA384")
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def dns_server() -> AsyncIterator[DnsZoneServer]:
    """A name server for far.example, which sends from 192.0.2.1, signs and rejects other mail."""
    server = make_dns_zone(
        {
            "far.example": "v=spf1 ip4:192.0.2.1 -all",
            "_dmarc.far.example": "v=DMARC1; p=reject",
            "_dmarc.mild.example": "v=DMARC1; p=quarantine",
            "_dmarc.lax.example": "v=DMARC1; p=none",
            "s._domainkey.far.example": make_rsa_key()[1],
            "s._domainkey.list.example": make_rsa_key()[1],
            "s._domainkey.example.org": make_rsa_key()[1],
        }
    )
    async with run_dns_zone(server):
        yield server


async def test_passing_results_are_written_on_top(
    ada: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    use_dns_zone(ada.environment, dns_server)
    verification = await message_verification(ada, await deliver_from_peer(ada, sign_message()))
    assert verification["specialUse"] == "INBOX"
    assert [verification[name] for name in ("spf", "dkim", "dmarc", "arc", "tls")] == [
        *("far.example", "far.example", "pass", "none"),
        None,
    ]
    results = verification["authenticationResults"]
    assert re.fullmatch(
        r"mx\.example\.org; spf=pass smtp\.mailfrom=far\.example; dkim=pass header\.d=far\.example "
        r'header\.s=s header\.b="\S{8}"; dmarc=pass \(p=reject\) header\.from=far\.example; '
        r"arc=none",
        results,
    )
    source = without_trace_fields(verification["rawSource"].encode()).decode()
    head, _, rest = source.partition("\r\nDKIM-Signature:")
    assert " ".join(head.split()) == f"Authentication-Results: {results}"
    assert rest.startswith(" v=1")
    parsed = authres.AuthenticationResultsHeader.parse(head)  # another program parses it
    assert parsed.authserv_id == "mx.example.org"
    assert [(result.method, result.result) for result in parsed.results] == [
        ("spf", "pass"),
        ("dkim", "pass"),
        ("dmarc", "pass"),
        ("arc", "none"),
    ]


@pytest.mark.parametrize(
    ("author", "policy", "folder"),
    [
        ("far.example", "junk", "JUNK"), ("mild.example", "junk", "JUNK"),
        ("lax.example", "junk", "INBOX"), ("none.example", "junk", "INBOX"),
        ("far.example", "ignore", "INBOX"), ("mild.example", "reject", "JUNK"),
    ],
)  # fmt: skip
async def test_forged_sender_is_treated_as_its_dmarc_policy_says(
    ada: GraphQLClient, dns_server: DnsZoneServer, author: str, policy: str, folder: str
) -> None:
    use_dns_zone(ada.environment, dns_server, dmarc_on_failure=policy)
    raw = UNSIGNED_MESSAGE.replace(b"far.example", author.encode())
    verification = await message_verification(
        ada, await deliver_from_peer(ada, raw, STRANGER_PEER, "x@evil.example")
    )
    assert verification["specialUse"] == folder
    assert verification["dmarc"] == ("none" if author == "none.example" else "fail")
    assert verification["tls"] == {"cipher": "TLS_AES_256_GCM_SHA384", "version": "TLSv1.3"}
    assert verification["spf"] is None


async def test_forged_sender_is_refused_with_reject_policy(
    ada: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    use_dns_zone(ada.environment, dns_server, dmarc_on_failure="reject")
    with pytest.raises(RejectedByDmarc):
        await deliver_from_peer(ada, UNSIGNED_MESSAGE, STRANGER_PEER, "x@evil.example")
    reply = reply_from_error(RejectedByDmarc("example.net\r\n250"))
    assert reply == "550 5.7.1 Email rejected per DMARC policy for example.net??250"
    await deliver_from_peer(ada, sign_message(), STRANGER_PEER, "x@evil.example")


async def test_second_author_does_not_hide_a_forged_first_author(
    ada: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    use_dns_zone(ada.environment, dns_server)
    dns_server.records["_dmarc.evil.example", "TXT"] = ['"v=DMARC1; p=none"']
    dns_server.records["evil.example", "TXT"] = ['"v=spf1 +all"']
    for author in (
        b"From: x@evil.example, Carol <carol@far.example>",
        b"From: x@evil.example\r\nFrom: carol@far.example",
    ):
        raw = UNSIGNED_MESSAGE.replace(b"From: Carol <carol@far.example>", author)
        verification = await message_verification(
            ada, await deliver_from_peer(ada, raw, STRANGER_PEER, "x@evil.example")
        )
        assert (verification["dmarc"], verification["specialUse"], verification["spf"]) == (
            "fail",
            "JUNK",
            "evil.example",
        )


async def test_trusted_arc_seal_overrules_dmarc_failure(
    ada: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    changed = sign_message().replace(b"Hello", b"[list] Hello")
    raw = signed_messages.seal_message(
        changed, "list.example", "dmarc=pass header.from=far.example"
    )
    use_dns_zone(ada.environment, dns_server)
    verification = await message_verification(
        ada, await deliver_from_peer(ada, raw, STRANGER_PEER, "list@list.example")
    )
    assert (verification["specialUse"], verification["dmarc"], verification["arc"]) == (
        "JUNK",
        "fail",
        "pass",
    )
    use_dns_zone(
        ada.environment,
        dns_server,
        arc_trusted_domains=("list.example",),
        dmarc_on_failure="reject",
    )
    changed_after_seal = raw + b"again\r\n"
    with pytest.raises(RejectedByDmarc):  # the seal does not cover the added text
        await deliver_from_peer(ada, changed_after_seal, STRANGER_PEER, "list@list.example")
    verification = await message_verification(
        ada, await deliver_from_peer(ada, b"X-A: b\r\n" + raw, STRANGER_PEER, "list@list.example")
    )
    assert (verification["specialUse"], verification["dmarc"], verification["arc"]) == (
        "INBOX",
        "fail",
        "pass",
    )
    assert "overruled by the seal of list.example" in verification["authenticationResults"]
    sealed_failure = signed_messages.seal_message(
        changed, "list.example", "dmarc=fail header.from=far.example"
    )
    with pytest.raises(RejectedByDmarc):
        await deliver_from_peer(ada, sealed_failure, STRANGER_PEER, "list@list.example")


FORGED_RESULTS = (
    b"Authentication-Results: mx.example.org; dmarc=pass\r\n",
    b"AUTHENTICATION-RESULTS : MX.Example.ORG 1; dmarc=pass\r\n",
    b"Authentication-Results:\r\n\t(x) mx.example.org (y); dmarc=pass\r\n",
    b'Authentication-Results: "mx.example.org"; dmarc=pass\r\n',
    b"Authentication-Results: front; dmarc=pass\r\n",
)


async def test_forged_own_results_are_removed(
    ada: GraphQLClient, dns_server: DnsZoneServer, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    use_dns_zone(ada.environment, dns_server, authserv_ids=("front",))
    other_results = b"Authentication-Results: else.example; dkim=pass\r\nX: y\r\n"
    raw = b"".join(FORGED_RESULTS) + other_results + sign_message()
    for source in (raw, spool / "incoming-1"):
        if isinstance(source, Path):
            source.write_bytes(b"X-Large: yes\r\n" + raw)
        verification = await message_verification(ada, await deliver_from_peer(ada, source))
        fields, _ = parse_well_formed_fields_and_crlf_body(verification["rawSource"].encode())
        authserv_ids = [
            field.value.split()[0] for field in fields if field.name.startswith("authent")
        ]
        assert authserv_ids == [b"mx.example.org;", b"else.example;"]
        assert verification["dkim"] == "far.example"
    assert os.listdir(spool) == ["incoming-1"]  # noqa: PTH208 - names of all files


def test_remove_results_removes_only_the_given_authserv_ids() -> None:
    body = b"\r\n" + b"".join(FORGED_RESULTS) + b"\xff\x00"
    assert remove_authentication_results_of_servers(
        b"".join(FORGED_RESULTS) + b"A: b\r\n c\r\n" + body, {"mx.example.org", "front"}
    ) == (b"A: b\r\n c\r\n" + body)
    for raw in (b"", b"\r\n", b"no header", b" x\r\nauthentication-results", body):
        assert remove_authentication_results_of_servers(raw, {"front"}) == raw
    long = b"Authentication-Results: front;\r\n" + b" \r\n" * 300_000 + b"\r\n"
    assert remove_authentication_results_of_servers(long, {"front"}) == b"\r\n"


async def test_repeat_is_recognized_although_dns_has_changed(
    ada: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    use_dns_zone(ada.environment, dns_server)
    raw = sign_message()
    first = await deliver_from_peer(ada, raw)
    dns_server.records.clear()
    async with run_dns_zone(make_dns_zone({})) as dns_address:  # a server without cached records
        options = replace(ada.environment.options, dns_resolver=dns_address)
        ada.environment.use_options_unless_outdated(
            CommittedOptions(options, ada.environment.options_position + 1)
        )
        incoming = await pipeline.read_and_verify_incoming(
            ada.environment, raw, FAR_SENDER, FAR_PEER
        )
        assert incoming.message.authentication is not None
        assert incoming.message.authentication["dmarc"] == "none"
        assert await deliver_from_peer(ada, raw) == first


@pytest.mark.parametrize(
    ("setting", "peer", "is_verified"),
    [
        ("off", FAR_PEER, False), ("smtp", FAR_PEER, True), ("all", FAR_PEER, True),
        ("off", None, False), ("smtp", None, False), ("all", None, True),
        ("all", Peer("::1", "x", None, "ada"), False),
    ],
)  # fmt: skip
async def test_authentication_check_setting_selects_what_is_verified(
    ada: GraphQLClient,
    dns_server: DnsZoneServer,
    setting: str,
    peer: Peer | None,
    *,
    is_verified: bool,
) -> None:
    use_dns_zone(ada.environment, dns_server, authentication_check=setting)
    raw = sign_message()
    incoming = await pipeline.read_and_verify_incoming(ada.environment, raw, FAR_SENDER, peer)
    assert (incoming.message.authentication is not None) is is_verified
    assert (incoming.raw_message != raw) is is_verified
    assert bool(dns_server.queries) is is_verified


async def test_authentication_settings_apply_without_restart(
    ada: GraphQLClient, root: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    use_dns_zone(ada.environment, dns_server)
    await set_setting(root, "authentication.check", "all")
    incoming = await pipeline.read_and_verify_incoming(ada.environment, sign_message(), FAR_SENDER)
    assert incoming.message.authentication is not None
    await set_setting(root, "dmarc.onFailure", "ignore")
    for key in ("authentication.check", "dmarc.onFailure"):
        assert (await expect_refused_setting(root, key, "none"))["__typename"] == "ValidationError"


async def test_spf_result_of_trusted_server_is_used_without_client_ip(
    ada: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    trusted_fields = (
        b"Authentication-Results: front; spf=pass smtp.mailfrom=carol@far.example; dmarc=fail\r\n"
        b"Received: from far.example by front; Tue, 01 Jan 2030 10:00:00 +0000\r\n"
    )
    use_dns_zone(ada.environment, dns_server, authentication_check="all")
    verification = await message_verification(
        ada, await deliver_from_peer(ada, trusted_fields + UNSIGNED_MESSAGE, None)
    )
    # No authserv-id is trusted.
    assert (verification["spf"], verification["dmarc"]) == (
        None,
        "none",
    )
    use_dns_zone(ada.environment, dns_server, authentication_check="all", authserv_ids=("front",))
    verification = await message_verification(
        ada, await deliver_from_peer(ada, trusted_fields + UNSIGNED_MESSAGE + b"2\r\n", None)
    )
    assert (verification["spf"], verification["dmarc"]) == ("far.example", "pass")
    failed_fields = trusted_fields.replace(b"spf=pass", b"spf=fail")
    verification = await message_verification(
        ada, await deliver_from_peer(ada, failed_fields + UNSIGNED_MESSAGE + b"3\r\n", None)
    )
    assert (verification["spf"], verification["dmarc"], verification["specialUse"]) == (
        None,
        "fail",
        "JUNK",
    )


async def test_dns_failure_does_not_reject_mail(
    ada: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    use_dns_zone(ada.environment, dns_server, dmarc_on_failure="reject")
    dns_server.servfail_names |= {name for name, _ in dns_server.records}
    dns_server.records.clear()
    verification = await message_verification(
        ada, await deliver_from_peer(ada, sign_message(), STRANGER_PEER)
    )
    assert (verification["specialUse"], verification["dmarc"], verification["dkim"]) == (
        "INBOX",
        None,
        None,
    )
    assert "dmarc=temperror" in verification["authenticationResults"]


async def test_hostile_message_causes_at_most_twenty_dns_queries(
    ada: GraphQLClient, dns_server: DnsZoneServer
) -> None:
    use_dns_zone(ada.environment, dns_server)
    dns_server.records["evil.example", "TXT"] = [
        '"v=spf1 ' + " ".join(f"include:i{n}.evil.example" for n in range(10)) + '"'
    ]
    for n in range(10):
        dns_server.records[f"i{n}.evil.example", "TXT"] = ['"v=spf1 mx ?all"']
        dns_server.records[f"i{n}.evil.example", "MX"] = [
            f"1 m{number}.evil.example." for number in range(10)
        ]
        for number in range(10):
            dns_server.records[f"m{number}.evil.example", "A"] = ["192.0.2.9"]
    signature_field = sign_message().partition(b"\r\nFrom")[0]
    raw = (
        b"".join(signature_field.replace(b"s=s;", b"s=x%d;" % n) + b"\r\n" for n in range(100))
        + UNSIGNED_MESSAGE
    )
    del dns_server.queries[:]
    verification = await message_verification(
        ada, await deliver_from_peer(ada, raw, STRANGER_PEER, "x@evil.example")
    )
    assert len(dns_server.queries) == 20
    assert dns_server.queries[0] == ("_dmarc.far.example", "TXT")
    assert (verification["dmarc"], verification["specialUse"]) == ("fail", "JUNK")
    assert verification["authenticationResults"].count("dkim=") == 10


async def test_any_bytes_are_accepted(ada: GraphQLClient, dns_server: DnsZoneServer) -> None:
    use_dns_zone(ada.environment, dns_server)
    for n, raw in enumerate(
        (b"\r\n", b"no header", b"\xff\xfe" * 500, b"From: <\r\n\r\n", b"A" * 9000)
    ):
        verification = await message_verification(
            ada, await deliver_from_peer(ada, raw, STRANGER_PEER, f"{n}@evil.example")
        )
        assert verification["dmarc"] is None


async def test_small_and_large_lmtp_messages_are_verified(
    ada: GraphQLClient, dns_server: DnsZoneServer, lmtp_client: SmtpTestClient, tmp_path: Path
) -> None:
    use_dns_zone(ada.environment, dns_server, authentication_check="all", dmarc_on_failure="reject")
    large = UNSIGNED_MESSAGE + b"A long line of a long letter.\r\n" * 60_000
    for raw, expected_reply in (
        (sign_message(), "250 2.0.0"),
        (sign_message(large), "250 2.0.0"),
        (sign_message(large) + b"more\r\n", "250 2.0.0"),
    ):
        await lmtp_client.start_data(ada.address, sender=FAR_SENDER)
        lmtp_client.send_bytes(raw + b".\r\n")
        assert (await lmtp_client.read_reply()).startswith(expected_reply)
    statement = select(col(Message.authentication), col(Message.size)).where(
        col(Message.user_id) == ada.user.id
    )
    rows = sorted(
        await ada.environment.database.read(statement.order_by(col(Message.id))),
        key=lambda row: row.size,
    )
    assert [row.authentication["dkim"] for row in rows] == ["far.example", "far.example", None]
    assert [row.authentication["dmarc"] for row in rows] == ["pass", "pass", "none"]
    assert not list((tmp_path / "spool").glob("incoming-*"))


async def test_forwarded_message_is_sealed(
    ada: GraphQLClient, dns_server: DnsZoneServer, lmtp_client: SmtpTestClient, tmp_path: Path
) -> None:
    environment, folder = ada.environment, tmp_path / "keys"
    folder.mkdir()
    key = folder / "s._domainkey.example.org.pem"
    key.write_bytes(make_rsa_key()[0])
    key.chmod(0o600)
    use_dns_zone(environment, dns_server, authentication_check="all", arc_keys_folder=folder)
    await add_forwarding_address(environment, "list", "dave@else.example")

    async def forward(raw: bytes) -> bytes:
        await lmtp_client.start_data("list@example.org", sender=FAR_SENDER)
        lmtp_client.send_bytes(raw + b".\r\n")
        assert (await lmtp_client.read_reply()).startswith("250")
        await poll_until(has_arrived)
        return smtp_server.messages.pop().raw

    async def has_arrived() -> bool:
        return bool(smtp_server.messages)

    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        raw = await forward(sign_message())
        broken = await forward(
            signed_messages.seal_message(UNSIGNED_MESSAGE, "list.example", "dmarc=pass")
            + b"changed\r\n"
        )
        key.chmod(0o644)
        unsealed = await forward(UNSIGNED_MESSAGE)
    fields = [field.name for field in Signed.from_bytes(raw).fields]
    assert fields[:5] == ["delivered-to", *reversed(arc.ARC_FIELDS), "authentication-results"]
    arc_chain = await arc.check_chain(
        MessageDns(environment.options.dns_resolver), Signed.from_bytes(raw), 0
    )
    assert (arc_chain.result, arc_chain.sealer_domains) == (AuthResult.PASS, ["example.org"])
    assert b"dkim=pass header.d=far.example" in b" ".join(arc_chain.arc_sets[0].results.raw.split())
    assert b"example.org" not in b"".join(
        field.raw for field in Signed.from_bytes(broken).fields if field.name == arc.SEAL_FIELD
    )
    assert arc.SEAL_FIELD not in [field.name for field in Signed.from_bytes(unsealed).fields]

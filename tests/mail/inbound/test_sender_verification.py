"""Mail from outside is checked, marked, judged and sealed: by real servers on loopback."""

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
from mail.authentication.header_fields import split_message
from mail.authentication.results_removal import remove_results
from mail.delivery import pipeline
from mail.envelope.client import SmtpClientInfo as Peer
from mail.inbound.sender_verification import RejectedByDmarc
from mail.smtp.replies import reply_from_error
from models.messages.tables import Message
from models.runtime.environment import CommittedOptions
from tests.conftest import Client
from tests.support.mail import signed_messages
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.inbound_authentication import (
    FAR_PEER,
    FAR_SENDER,
    deliver_from_peer,
    message_verification,
    use_dns_zone,
)
from tests.support.mail.signed_messages import LETTER, pair, signed
from tests.support.mail.trace_header_lines import below
from tests.support.mail_servers.dns_zone_server import Zone, asking, zone
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.queue_worker import relay, until, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.setting_operations import put, refused

STRANGER = Peer("198.51.100.1", "mx.evil.example", "TLSv1.3 TLS_AES_256_GCM_SHA384")
pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
async def there() -> AsyncIterator[Zone]:
    """The world outside: far.example sends from 192.0.2.1, signs, and wants all else refused."""
    made = zone(
        {
            "far.example": "v=spf1 ip4:192.0.2.1 -all",
            "_dmarc.far.example": "v=DMARC1; p=reject",
            "_dmarc.mild.example": "v=DMARC1; p=quarantine",
            "_dmarc.lax.example": "v=DMARC1; p=none",
            "s._domainkey.far.example": pair()[1],
            "s._domainkey.list.example": pair()[1],
            "s._domainkey.example.org": pair()[1],
        }
    )
    async with asking(made):
        yield made


async def test_what_is_true_passes_and_is_written_on_top(ada: Client, there: Zone) -> None:
    use_dns_zone(ada.world, there)
    found = await message_verification(ada, await deliver_from_peer(ada, signed()))
    assert found["specialUse"] == "INBOX"
    assert [found[name] for name in ("spf", "dkim", "dmarc", "arc", "tls")] == [
        *("far.example", "far.example", "pass", "none"),
        None,
    ]
    told = found["authenticationResults"]
    assert re.fullmatch(
        r"mx\.example\.org; spf=pass smtp\.mailfrom=far\.example; dkim=pass header\.d=far\.example "
        r'header\.s=s header\.b="\S{8}"; dmarc=pass \(p=reject\) header\.from=far\.example; '
        r"arc=none",
        told,
    )
    came = below(found["source"].encode()).decode()
    head, _, rest = came.partition("\r\nDKIM-Signature:")
    assert " ".join(head.split()) == f"Authentication-Results: {told}"
    assert rest.startswith(" v=1")
    read = authres.AuthenticationResultsHeader.parse(head)  # another program understands it
    assert read.authserv_id == "mx.example.org"
    assert [(each.method, each.result) for each in read.results] == [
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
async def test_a_forged_sender_is_as_its_domain_wants(
    ada: Client, there: Zone, author: str, policy: str, folder: str
) -> None:
    use_dns_zone(ada.world, there, dmarc_policy=policy)
    raw = LETTER.replace(b"far.example", author.encode())
    found = await message_verification(
        ada, await deliver_from_peer(ada, raw, STRANGER, "x@evil.example")
    )
    assert found["specialUse"] == folder
    assert found["dmarc"] == ("none" if author == "none.example" else "fail")
    assert found["tls"] == {"name": "TLS_AES_256_GCM_SHA384", "version": "TLSv1.3"}
    assert found["spf"] is None


async def test_a_forged_sender_can_be_refused_for_all(ada: Client, there: Zone) -> None:
    use_dns_zone(ada.world, there, dmarc_policy="reject")
    with pytest.raises(RejectedByDmarc):
        await deliver_from_peer(ada, LETTER, STRANGER, "x@evil.example")
    assert reply_from_error(RejectedByDmarc("x")).startswith("550 5.7.1")
    await deliver_from_peer(ada, signed(), STRANGER, "x@evil.example")


async def test_a_second_author_hides_no_first(ada: Client, there: Zone) -> None:
    use_dns_zone(ada.world, there)
    there.records["_dmarc.evil.example", "TXT"] = ['"v=DMARC1; p=none"']
    there.records["evil.example", "TXT"] = ['"v=spf1 +all"']
    for author in (
        b"From: x@evil.example, Carol <carol@far.example>",
        b"From: x@evil.example\r\nFrom: carol@far.example",
    ):
        raw = LETTER.replace(b"From: Carol <carol@far.example>", author)
        found = await message_verification(
            ada, await deliver_from_peer(ada, raw, STRANGER, "x@evil.example")
        )
        assert (found["dmarc"], found["specialUse"], found["spf"]) == (
            "fail",
            "JUNK",
            "evil.example",
        )


async def test_a_trusted_seal_overrules_what_a_list_has_broken(ada: Client, there: Zone) -> None:
    changed = signed().replace(b"Hello", b"[list] Hello")
    raw = signed_messages.sealed(changed, "list.example", "dmarc=pass header.from=far.example")
    use_dns_zone(ada.world, there)
    found = await message_verification(
        ada, await deliver_from_peer(ada, raw, STRANGER, "list@list.example")
    )
    assert (found["specialUse"], found["dmarc"], found["arc"]) == ("JUNK", "fail", "pass")
    use_dns_zone(ada.world, there, arc_trusted=("list.example",), dmarc_policy="reject")
    again = raw + b"again\r\n"
    with pytest.raises(RejectedByDmarc):  # the seal does not fit what was added
        await deliver_from_peer(ada, again, STRANGER, "list@list.example")
    found = await message_verification(
        ada, await deliver_from_peer(ada, b"X-A: b\r\n" + raw, STRANGER, "list@list.example")
    )
    assert (found["specialUse"], found["dmarc"], found["arc"]) == ("INBOX", "fail", "pass")
    assert "overruled by the seal of list.example" in found["authenticationResults"]
    failed = signed_messages.sealed(changed, "list.example", "dmarc=fail header.from=far.example")
    with pytest.raises(RejectedByDmarc):
        await deliver_from_peer(ada, failed, STRANGER, "list@list.example")


FORGED = (
    b"Authentication-Results: mx.example.org; dmarc=pass\r\n",
    b"AUTHENTICATION-RESULTS : MX.Example.ORG 1; dmarc=pass\r\n",
    b"Authentication-Results:\r\n\t(x) mx.example.org (y); dmarc=pass\r\n",
    b'Authentication-Results: "mx.example.org"; dmarc=pass\r\n',
    b"Authentication-Results: front; dmarc=pass\r\n",
)


async def test_nobody_else_speaks_for_us(ada: Client, there: Zone, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    use_dns_zone(ada.world, there, authserv_ids=("front",))
    others = b"Authentication-Results: else.example; dkim=pass\r\nX: y\r\n"
    raw = b"".join(FORGED) + others + signed()
    for way in (raw, spool / "incoming-1"):
        if isinstance(way, Path):
            way.write_bytes(b"X-Large: yes\r\n" + raw)
        found = await message_verification(ada, await deliver_from_peer(ada, way))
        fields, _ = split_message(found["source"].encode())
        said = [each.value.split()[0] for each in fields if each.name.startswith("authent")]
        assert said == [b"mx.example.org;", b"else.example;"]
        assert found["dkim"] == "far.example"
    assert os.listdir(spool) == ["incoming-1"]  # noqa: PTH208 - what there is, and nothing else


def test_stripping_takes_what_it_is_told_and_nothing_more() -> None:
    body = b"\r\n" + b"".join(FORGED) + b"\xff\x00"
    assert remove_results(
        b"".join(FORGED) + b"A: b\r\n c\r\n" + body, {"mx.example.org", "front"}
    ) == (b"A: b\r\n c\r\n" + body)
    for raw in (b"", b"\r\n", b"no header", b" x\r\nauthentication-results", body):
        assert remove_results(raw, {"front"}) == raw
    long = b"Authentication-Results: front;\r\n" + b" \r\n" * 300_000 + b"\r\n"
    assert remove_results(long, {"front"}) == b"\r\n"


async def test_a_repeat_is_known_though_dns_says_something_else(ada: Client, there: Zone) -> None:
    use_dns_zone(ada.world, there)
    raw = signed()
    first = await deliver_from_peer(ada, raw)
    there.records.clear()
    async with asking(zone({})) as place:  # nothing is remembered of the other
        made = replace(ada.world.options, dns_resolver=place)
        ada.world.apply_options(CommittedOptions(made, ada.world.options_position + 1))
        mail = await pipeline.read_incoming(ada.world, raw, FAR_SENDER, FAR_PEER)
        assert mail.message.verification is not None
        assert mail.message.verification["dmarc"] == "none"
        assert await deliver_from_peer(ada, raw) == first


@pytest.mark.parametrize(
    ("setting", "peer", "ours"),
    [
        ("off", FAR_PEER, False), ("smtp", FAR_PEER, True), ("all", FAR_PEER, True),
        ("off", None, False), ("smtp", None, False), ("all", None, True),
        ("all", Peer("::1", "x", None, "ada"), False),
    ],
)  # fmt: skip
async def test_what_is_checked_is_a_setting(
    ada: Client, there: Zone, setting: str, peer: Peer | None, *, ours: bool
) -> None:
    use_dns_zone(ada.world, there, authentication_check=setting)
    raw = signed()
    mail = await pipeline.read_incoming(ada.world, raw, FAR_SENDER, peer)
    assert (mail.message.verification is not None) is ours
    assert (mail.raw_message != raw) is ours
    assert bool(there.asked) is ours


async def test_it_is_changed_while_we_run(ada: Client, root: Client, there: Zone) -> None:
    use_dns_zone(ada.world, there)
    await put(root, "authentication.check", "all")
    mail = await pipeline.read_incoming(ada.world, signed(), FAR_SENDER)
    assert mail.message.verification is not None
    await put(root, "authentication.dmarc", "ignore")
    for key in ("authentication.check", "authentication.dmarc"):
        assert (await refused(root, key, "none"))["__typename"] == "ValidationError"


async def test_without_a_client_spf_is_what_our_server_in_front_says(
    ada: Client, there: Zone
) -> None:
    front = (
        b"Authentication-Results: front; spf=pass smtp.mailfrom=carol@far.example; dmarc=fail\r\n"
        b"Received: from far.example by front; Tue, 01 Jan 2030 10:00:00 +0000\r\n"
    )
    use_dns_zone(ada.world, there, authentication_check="all")
    found = await message_verification(ada, await deliver_from_peer(ada, front + LETTER, None))
    assert (found["spf"], found["dmarc"]) == (None, "none")  # nobody is believed, nothing is proven
    use_dns_zone(ada.world, there, authentication_check="all", authserv_ids=("front",))
    found = await message_verification(
        ada, await deliver_from_peer(ada, front + LETTER + b"2\r\n", None)
    )
    assert (found["spf"], found["dmarc"]) == ("far.example", "pass")
    other = front.replace(b"spf=pass", b"spf=fail")
    found = await message_verification(
        ada, await deliver_from_peer(ada, other + LETTER + b"3\r\n", None)
    )
    assert (found["spf"], found["dmarc"], found["specialUse"]) == (None, "fail", "JUNK")


async def test_dns_that_fails_loses_no_mail(ada: Client, there: Zone) -> None:
    use_dns_zone(ada.world, there, dmarc_policy="reject")
    there.broken |= {name for name, _ in there.records}
    there.records.clear()
    found = await message_verification(ada, await deliver_from_peer(ada, signed(), STRANGER))
    assert (found["specialUse"], found["dmarc"], found["dkim"]) == ("INBOX", None, None)
    assert "dmarc=temperror" in found["authenticationResults"]


async def test_a_hostile_message_asks_twenty_questions_and_the_policy_first(
    ada: Client, there: Zone
) -> None:
    use_dns_zone(ada.world, there)
    there.records["evil.example", "TXT"] = [
        '"v=spf1 ' + " ".join(f"include:i{n}.evil.example" for n in range(10)) + '"'
    ]
    for n in range(10):
        there.records[f"i{n}.evil.example", "TXT"] = ['"v=spf1 mx ?all"']
        there.records[f"i{n}.evil.example", "MX"] = [f"1 m{at}.evil.example." for at in range(10)]
        for at in range(10):
            there.records[f"m{at}.evil.example", "A"] = ["192.0.2.9"]
    mark = signed().partition(b"\r\nFrom")[0]
    raw = b"".join(mark.replace(b"s=s;", b"s=x%d;" % n) + b"\r\n" for n in range(100)) + LETTER
    del there.asked[:]
    found = await message_verification(
        ada, await deliver_from_peer(ada, raw, STRANGER, "x@evil.example")
    )
    assert len(there.asked) == 20
    assert there.asked[0] == ("_dmarc.far.example", "TXT")
    assert (found["dmarc"], found["specialUse"]) == ("fail", "JUNK")
    assert found["authenticationResults"].count("dkim=") == 10


async def test_any_bytes_are_mail(ada: Client, there: Zone) -> None:
    use_dns_zone(ada.world, there)
    for n, raw in enumerate(
        (b"\r\n", b"no header", b"\xff\xfe" * 500, b"From: <\r\n\r\n", b"A" * 9000)
    ):
        found = await message_verification(
            ada, await deliver_from_peer(ada, raw, STRANGER, f"{n}@evil.example")
        )
        assert found["dmarc"] is None


async def test_by_lmtp_small_and_large_mail_is_checked(
    ada: Client, there: Zone, neighbour: Neighbour, tmp_path: Path
) -> None:
    use_dns_zone(ada.world, there, authentication_check="all", dmarc_policy="reject")
    large = LETTER + b"A long line of a long letter.\r\n" * 60_000
    for raw, answer in (
        (signed(), "250 2.0.0"),
        (signed(large), "250 2.0.0"),
        (signed(large) + b"more\r\n", "250 2.0.0"),
    ):
        await neighbour.begin(ada.address, sender=FAR_SENDER)
        neighbour.send(raw + b".\r\n")
        assert (await neighbour.hear()).startswith(answer)
    asked = select(col(Message.verification), col(Message.size)).where(
        col(Message.user_id) == ada.user.id
    )
    rows = sorted(
        await ada.world.database.read(asked.order_by(col(Message.id))), key=lambda row: row.size
    )
    assert [row.verification["dkim"] for row in rows] == ["far.example", "far.example", None]
    assert [row.verification["dmarc"] for row in rows] == ["pass", "pass", "none"]
    assert not list((tmp_path / "spool").glob("incoming-*"))


async def test_what_is_sent_on_is_sealed(
    ada: Client, there: Zone, neighbour: Neighbour, tmp_path: Path
) -> None:
    world, folder = ada.world, tmp_path / "keys"
    folder.mkdir()
    key = folder / "s._domainkey.example.org.pem"
    key.write_bytes(pair()[0])
    key.chmod(0o600)
    use_dns_zone(world, there, authentication_check="all", arc_keys=folder)
    await add_forwarding_address(world, "list", "dave@else.example")

    async def sent(raw: bytes) -> bytes:
        await neighbour.begin("list@example.org", sender=FAR_SENDER)
        neighbour.send(raw + b".\r\n")
        assert (await neighbour.hear()).startswith("250")
        await until(came)
        return out.mails.pop().raw

    async def came() -> bool:
        return bool(out.mails)

    async with listening(Server()) as out, working(world, relay(out)):
        raw = await sent(signed())
        broken = await sent(
            signed_messages.sealed(LETTER, "list.example", "dmarc=pass") + b"changed\r\n"
        )
        key.chmod(0o644)
        bare = await sent(LETTER)
    fields = [each.name for each in Signed.from_bytes(raw).fields]
    assert fields[:5] == ["delivered-to", *reversed(arc.ARC_FIELDS), "authentication-results"]
    found = await arc.check_chain(MessageDns(world.options.dns_resolver), Signed.from_bytes(raw), 0)
    assert (found.result, found.sealer_domains) == (AuthResult.PASS, ["example.org"])
    assert b"dkim=pass header.d=far.example" in b" ".join(found.arc_sets[0].results.raw.split())
    assert b"example.org" not in b"".join(
        each.raw for each in Signed.from_bytes(broken).fields if each.name == arc.SEAL_FIELD
    )
    assert arc.SEAL_FIELD not in [each.name for each in Signed.from_bytes(bare).fields]

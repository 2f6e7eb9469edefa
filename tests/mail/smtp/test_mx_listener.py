"""Mail that comes by SMTP, over real sockets; its post is in memory."""

import asyncio
import smtplib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mail.delivery.listener_backend import SmtpArrival
from mail.recipients.recipient_routes import AcceptedRecipient
from mail.smtp.connection_limits import SessionLimits
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.tls.server_tls import CertificateFiles
from models.errors import Forbidden, NotFound, OverQuota, ServiceUnavailable
from models.runtime.options import MIB
from tests.conftest import Clock
from tests.support.mail_servers.empty_store_listeners import listeners
from tests.support.mail_servers.lmtp_client import Memory, Neighbour, until
from tests.support.mail_servers.smtp_client import Authority, connect, secured, wrapped

FULL = OverQuota(used=1, allowed=1)
Open = Callable[..., Awaitable[MxListener]]


@dataclass
class Doorway(Memory):
    """A post in memory that says who handed the mail in, and what was put off."""

    arrived: list[SmtpArrival] = field(default_factory=list)
    put_off: list[str] = field(default_factory=list)
    broken: Exception | None = None
    asked: int = 0  # recipients

    async def accept_recipient(self, address: str, sender: str) -> AcceptedRecipient:
        self.asked += 1
        return await super().accept_recipient(address, sender)

    async def deliver(
        self,
        source: bytes | Path,
        taken: Sequence[AcceptedRecipient],
        sender: str,
        arrived: SmtpArrival | None = None,
    ) -> Sequence[object]:
        assert arrived is not None
        self.arrived.append(arrived)
        return await super().deliver(source, taken, sender, arrived)

    async def enqueue_for_retry(
        self,
        source: bytes | Path,
        taken: Sequence[AcceptedRecipient],
        sender: str,
        arrived: SmtpArrival,
    ) -> None:
        if self.broken:
            raise self.broken
        self.put_off += [each.address for each in taken]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def post() -> Doorway:
    return Doorway()


@pytest.fixture
async def listening(
    tmp_path: Path, post: Doorway, authority: Authority, clock: Clock
) -> AsyncIterator[Open]:
    """Opens a listener on these terms."""
    async with listeners(tmp_path) as there:

        async def begin(
            rules: MxRules | None = None, *, tls: bool = True, **given: Any
        ) -> MxListener:
            names = {
                name: given.pop(name) for name in list(given) if hasattr(SessionLimits(), name)
            }
            terms = SmtpListenerConfig(
                limits=replace(SessionLimits(), **names),
                certificates=CertificateFiles(authority.issue()) if tls else None,
                **given,
            )
            world = there.world(now=clock)
            return await there.begun(MxListener(world, tmp_path / "spool", terms, rules, post))

        yield begin


@pytest.fixture
async def mx(listening: Open) -> MxListener:
    return await listening()


@pytest.fixture
async def client(mx: MxListener) -> AsyncIterator[Neighbour]:
    neighbour = await connect(mx.port)
    yield neighbour
    await neighbour.close()


async def send(client: Neighbour, raw: bytes, *to: str, more: str = "") -> str:
    await client.begin(*to, more=more)
    client.send(raw + b".\r\n")
    return await client.hear()


async def test_ehlo_says_what_we_can_do(mx: MxListener) -> None:
    client = await connect(mx.port, greet=False)
    assert await client.hear() == "220 mx.example.org ESMTP"
    offers = ["PIPELINING", f"SIZE {64 * MIB}", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
    offers.append("DSN")
    assert (await client.say("EHLO mx.example.net")).splitlines() == [
        "250-mx.example.org",
        *(f"250-{offer}" for offer in offers),
        "250 STARTTLS",
    ]
    assert await client.say("HELO mx.example.net") == "250 mx.example.org"
    await client.close()


async def test_a_message_is_given_our_field_and_its_client_is_known(
    client: Neighbour, post: Doorway
) -> None:
    reply = await send(client, b"Subject: Hi\r\n\r\nHello\r\n", "ada@example.org")
    key = reply.rpartition(" ")[2]
    assert reply == f"250 2.0.0 Taken as {key}"
    (letter,), (arrived,) = post.letters, post.arrived
    assert letter.raw.decode() == (
        "Received: from mx.example.net ([127.0.0.1])\r\n"
        f"\tby mx.example.org with ESMTP\r\n\tid {key}; Tue, 01 Jan 2030 00:00:00 +0000\r\n"
        "Subject: Hi\r\n\r\nHello\r\n"
    )
    assert (arrived.client.ip_address, arrived.client.helo_name) == ("127.0.0.1", "mx.example.net")
    assert (arrived.client.tls_description, arrived.client.username) == (None, None)
    again = await send(client, b"Subject: Hi\r\n\r\nHello\r\n", "ada@example.org")
    assert again.startswith("250 ")
    assert post.arrived[1].content_digest == arrived.content_digest  # our own field does not count


@pytest.mark.parametrize(
    ("greeting", "more", "protocol"),
    [("HELO x", "", "SMTP"), ("EHLO x", "", "ESMTP"), ("EHLO x", " SMTPUTF8", "UTF8SMTP")],
)
async def test_received_names_the_protocol(
    client: Neighbour, post: Doorway, greeting: str, more: str, protocol: str
) -> None:
    await client.say(greeting)
    await send(client, b"\r\nHello\r\n", "ada@example.org", more=more)
    assert f"with {protocol}\r\n".encode() in post.letters[0].raw


async def test_starttls(mx: MxListener, authority: Authority, post: Doorway) -> None:
    client = await connect(mx.port)
    await secured(client, authority.client())
    assert "STARTTLS" not in await client.say("EHLO mx.example.net")
    assert (await client.say("STARTTLS")).startswith("503 5.5.1")
    await send(client, b"Subject: Hi\r\n" * 30_000 + b"\r\nHello\r\n", "ada@example.org")
    assert b"with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n" in post.letters[0].raw
    assert post.arrived[0].client.tls_description == "TLSv1.3 TLS_AES_256_GCM_SHA384"
    assert (await client.say("QUIT")).startswith("221")
    assert await client.ended() == b""
    await client.close()


async def test_an_ordinary_client_sends_over_tls(
    mx: MxListener, authority: Authority, post: Doorway
) -> None:
    def work() -> Any:
        with smtplib.SMTP("127.0.0.1", mx.port, timeout=10) as smtp:
            smtp._host = "mx.example.org"  # type: ignore[attr-defined]  # noqa: SLF001
            smtp.starttls(context=authority.client())
            return smtp.sendmail(
                "carol@example.net", ["ada@example.org", "nobody@example.org"], "Hello\n"
            )

    refused = await asyncio.to_thread(work)
    assert refused == {"nobody@example.org": (550, b"5.1.1 No such user here")}
    assert post.letters[0].to == ["ada@example.org"]


async def test_tls_from_the_first_byte(
    listening: Open, authority: Authority, post: Doorway
) -> None:
    mx = await listening(implicit_tls=True)
    client = await wrapped(mx.port, authority.client())
    assert (await send(client, b"\r\nHello\r\n", "ada@example.org")).startswith("250")
    assert post.arrived[0].client.tls_description
    await client.close()


async def test_a_new_certificate_is_in_force_at_once(mx: MxListener, authority: Authority) -> None:
    authority.issue("other.example.org")
    client = await connect(mx.port)
    await secured(client, authority.client(), "other.example.org")
    (authority.folder / "server.pem").write_text("half a fi")
    again = await connect(mx.port)
    await secured(again, authority.client(), "other.example.org")
    await client.close()
    await again.close()


async def test_no_tls_where_the_client_talks_on(mx: MxListener) -> None:
    client = await connect(mx.port)
    assert (await client.say("STARTTLS")).startswith("220")
    client.send(b"EHLO mallory\r\nMAIL FROM:<m@example.net>\r\n")
    assert b"250" not in await client.ended()
    await client.close()
    await until(lambda: not mx.sessions)


async def test_without_a_certificate_there_is_no_tls(listening: Open) -> None:
    mx = await listening(tls=False)
    client = await connect(mx.port)
    assert "STARTTLS" not in await client.say("EHLO x")
    assert (await client.say("STARTTLS")).startswith("502 5.5.1")
    await client.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_old_tls_is_not_spoken(mx: MxListener, authority: Authority) -> None:
    context = authority.client()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    client = await connect(mx.port)
    await client.say("STARTTLS")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.writer.start_tls(context, server_hostname="mx.example.org")


# ---------------------------------------------------------------- one answer for many


async def test_where_nobody_has_it_it_is_refused(client: Neighbour, post: Doorway) -> None:
    post.refuse = {"ada": FULL, "bob": Forbidden("no")}
    reply = await send(client, b"\r\nHello\r\n", "ada@example.org", "bob@example.org")
    assert reply == "452 4.2.2 Mailbox full"  # it may help to come again
    post.refuse = {"ada": Forbidden("no"), "bob": Forbidden("no")}
    reply = await send(client, b"\r\nHello\r\n", "ada@example.org", "bob@example.org")
    assert reply.startswith("550 5.7.1")
    assert not post.put_off


@pytest.mark.parametrize(
    "refusal", [FULL, Forbidden("no"), NotFound("bob"), ServiceUnavailable("no")]
)
async def test_where_some_have_it_the_queue_has_it_for_the_others(
    client: Neighbour, post: Doorway, refusal: Exception
) -> None:
    post.refuse = {"bob": refusal}
    reply = await send(client, b"\r\nHello\r\n", "ada@example.org", "bob@example.org")
    assert reply.startswith("250 2.0.0")
    assert post.put_off == ["bob@example.org"]
    assert post.letters[0].to == ["ada@example.org"]


async def test_where_the_queue_cannot_have_it_it_comes_again(
    client: Neighbour, post: Doorway
) -> None:
    post.refuse, post.broken = {"bob": FULL}, OSError("no disk")
    reply = await send(client, b"\r\nHello\r\n", "ada@example.org", "bob@example.org")
    assert reply == "451 4.3.0 Try again later"


async def test_mail_in_circles_is_refused(client: Neighbour, post: Doorway) -> None:
    header = b"Received: from a by b; now\r\n" * 30
    reply = await send(client, header + b"\r\nHello\r\n", "ada@example.org")
    assert reply.startswith("554 5.4.6")
    assert not post.letters
    quoted = b"Subject: Hi\r\n\r\n" + header
    assert (await send(client, quoted, "ada@example.org")).startswith("250")


@pytest.mark.parametrize("raw", [b" by a friend\r\n\r\nHi\r\n", b"\tx\r\n"])
async def test_a_message_does_not_go_on_with_our_field(
    client: Neighbour, post: Doorway, raw: bytes
) -> None:
    assert (await send(client, raw, "ada@example.org")).startswith("250")
    top, rest = post.letters[0].raw.split(b"\r\n\r\n", 1)
    assert top.startswith(b"Received: from mx.example.net")
    assert top.count(b"\r\n") == 2
    assert rest == raw


# ---------------------------------------------------------------- attacks


@pytest.mark.parametrize(
    ("name", "asked"), [(b"RCPT TO:<ada@example.org>", 100), (b"RCPT TO:<guess@example.org>", 51)]
)
async def test_ten_thousand_recipients(
    listening: Open, post: Doorway, name: bytes, asked: int
) -> None:
    mx = await listening(max_commands=2000, max_unknown_recipients=50)
    client = await connect(mx.port)
    client.send(b"MAIL FROM:<c@example.net>\r\n" + (name + b"\r\n") * 10_000)
    with suppress(ConnectionError):  # it is hung up while it still talks
        await client.ended()
    await until(lambda: not mx.sessions)
    assert post.asked == asked
    assert not post.letters
    await client.close()


async def test_too_many_commands_end_a_session(listening: Open) -> None:
    mx = await listening(max_commands=10)
    client = await connect(mx.port)
    client.send(b"NOOP\r\n" * 9)
    assert (await client.ended()).endswith(b"421 4.7.0 Too many commands, come back for more\r\n")
    await client.close()


async def test_slow_clients_are_let_go(listening: Open) -> None:
    slow = await listening(command_timeout=0.2)
    client = await connect(slow.port, greet=False)
    assert b"421 4.4.2" in await client.ended()
    begun = await connect(slow.port)
    await begun.begin("ada@example.org")
    begun.send(b"Hello")
    assert b"421 4.4.2" in await begun.ended()
    for each in (client, begun):
        await each.close()


@pytest.mark.parametrize("limit", ["session_timeout", "message_timeout"])
async def test_a_drop_now_and_then_keeps_no_session_open(listening: Open, limit: str) -> None:
    mx = await listening(**{limit: 0.6})
    client = await connect(mx.port)
    await client.begin("ada@example.org")
    async with asyncio.timeout(10):
        while mx.sessions:
            with suppress(ConnectionError):  # it is hung up while it still talks
                client.send(b"x\r\n")
            await asyncio.sleep(0.05)
    await client.close()
    assert mx.byte_budget.used == 0


async def test_a_hello_that_is_no_name(client: Neighbour) -> None:
    for name in ("", "a b", "<x>", "x" * 256, "x\tReceived: y", "(comment"):
        assert (await client.say(f"EHLO {name}")).startswith("501 5.5.4"), name
    assert (await client.say("EHLO [IPv6:::1]")).startswith("250-")


async def test_auth_is_not_offered(client: Neighbour) -> None:
    assert "AUTH" not in await client.say("EHLO x")
    assert (await client.say("AUTH PLAIN AGEAYg==")).startswith("500 5.5.1")


# ---------------------------------------------------------------- where from


async def test_connections_of_a_network_are_limited(listening: Open) -> None:
    mx = await listening(max_connections_per_network=2)
    first, second = await connect(mx.port), await connect(mx.port)
    third = await connect(mx.port, greet=False)
    assert (await third.hear()).startswith("421 4.7.0")
    assert await third.ended() == b""
    await first.say("QUIT")
    await until(lambda: len(mx.sessions) == 1)
    fourth = await connect(mx.port)
    for each in (first, second, third, fourth):
        await each.close()
    await until(lambda: not mx.sessions)
    assert mx.connection_limiter.in_use_count == 0


V2 = b"\r\n\r\n\x00\r\nQUIT\n"
BALANCED = [
    (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n", "192.0.2.7"),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 25\r\n", "2001:db8::7"),
    (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    (V2 + b"\x21\x11\x00\x0c\xc0\x00\x02\x07\xc0\x00\x02\x01\x12\x67\x00\x19", "192.0.2.7"),
    (
        V2 + b"\x21\x21\x00\x24" + bytes.fromhex("20010db8") + bytes(11) + b"\x07" + bytes(20),
        "2001:db8::7",
    ),
    (V2 + b"\x20\x00\x00\x00", "127.0.0.1"),
]


@pytest.mark.parametrize(("head", "ip"), BALANCED)
async def test_a_balancer_says_who_it_is(
    listening: Open, post: Doorway, head: bytes, ip: str
) -> None:
    mx = await listening(proxy_networks=("127.0.0.0/8",))
    client = await connect(mx.port, greet=False)
    client.send(head + b"EHLO x\r\n")
    assert (await client.hear()).startswith("220")
    assert (await client.hear()).startswith("250-")
    await send(client, b"\r\nHello\r\n", "ada@example.org")
    assert post.arrived[0].client.ip_address == ip
    await client.close()


@pytest.mark.parametrize(
    "head",
    [
        b"EHLO mx.example.net\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 25\r\n",
        b"PROXY TCP4 me you 4711 25\r\n",
        b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
        V2 + b"\x31\x11\x00\x0c" + bytes(12),
        V2 + b"\x21\x11\xff\xff",
        V2 + b"\x21\x11\x00\x02\x00\x00",
    ],
)
async def test_a_balancer_that_does_not_say_it_well(listening: Open, head: bytes) -> None:
    mx = await listening(proxy_networks=("127.0.0.0/8",))
    client = await connect(mx.port, greet=False)
    client.send(head)
    assert await client.ended() == b""
    await client.close()


async def test_only_a_balancer_may_say_who_it_is(mx: MxListener) -> None:
    client = await connect(mx.port, greet=False)
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\n")
    assert (await client.hear()).startswith("220")
    assert (await client.hear()).startswith("500 5.5.1")
    await client.close()


async def test_a_balancer_before_tls(listening: Open, authority: Authority, post: Doorway) -> None:
    mx = await listening(proxy_networks=("127.0.0.0/8",), implicit_tls=True)
    client = await connect(mx.port, greet=False)
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 465\r\n")
    await client.writer.start_tls(authority.client(), server_hostname="mx.example.org")
    assert (await client.hear()).startswith("220")
    await client.say("EHLO x")
    await send(client, b"\r\nHello\r\n", "ada@example.org")
    assert post.arrived[0].client.ip_address == "192.0.2.7"
    await client.close()


async def test_so_much_a_network_may_send_in_an_hour(
    listening: Open, post: Doorway, clock: Clock
) -> None:
    mx = await listening(MxRules(network_hourly=3, network_hourly_per_account=2))
    client = await connect(mx.port)
    for _ in range(2):
        assert (await send(client, b"\r\nHi\r\n", "ada@example.org")).startswith("250")
    await client.say("MAIL FROM:<c@example.net>")
    assert (await client.say("RCPT TO:<ada@example.org>")).startswith("450 4.2.1")
    assert (await client.say("RCPT TO:<bob@example.org>")).startswith("250")
    await client.say("DATA")
    client.send(b"\r\nHi\r\n.\r\n")
    assert (await client.hear()).startswith("250")
    assert (await client.say("MAIL FROM:<c@example.net>")).startswith("450 4.7.1")
    clock.tick(hours=1)
    assert (await send(client, b"\r\nHi\r\n", "ada@example.org")).startswith("250")
    assert len(post.letters) == 4
    await client.close()


async def test_what_is_refused_does_not_count(listening: Open, post: Doorway) -> None:
    mx = await listening(MxRules(network_hourly=1))
    post.refuse = {"ada": FULL}
    client = await connect(mx.port)
    for _ in range(3):
        assert (await send(client, b"\r\nHi\r\n", "ada@example.org")).startswith("452")
    await client.close()


async def test_a_recipient_that_takes_too_long_is_put_off(
    listening: Open, post: Doorway, monkeypatch: pytest.MonkeyPatch
) -> None:
    mx = await listening(MxRules(recipient_timeout=0.1))
    waits = asyncio.Event()

    async def accept(_address: str, _sender: str) -> AcceptedRecipient:
        await waits.wait()
        raise NotFound("nobody")

    monkeypatch.setattr(post, "accept_recipient", accept)
    client = await connect(mx.port)
    await client.say("MAIL FROM:<c@example.net>")
    assert (await client.say("RCPT TO:<ada@example.org>")).startswith("451 4.3.0")
    await client.close()

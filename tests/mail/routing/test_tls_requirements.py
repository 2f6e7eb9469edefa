"""How much encryption destinations get: policies, DANE, against servers that fall short of it."""

import hashlib
import ssl
from pathlib import Path

import pytest
from dns.asyncresolver import Resolver

from mail.mime.header_encoding import NamedAddress
from mail.network.dns_resolver import enable_dnssec
from mail.routing.mx_hosts import OutboundSettings
from models.routing.tables import TlsPolicyLevel
from models.runtime.environment import Environment
from tests.conftest import Client, Clock
from tests.support.mail.tls_certificates import Pair, made, shown, trusting
from tests.support.mail_servers.queue_worker import (
    State,
    deliveries,
    inbox,
    ring,
    send,
    settled,
    until,
    working,
)
from tests.support.mail_servers.route_rows import exchanged, policy
from tests.support.mail_servers.smtp_and_dns_servers import Names, Server, answering, listening

MX = "mx1.example.net"
Level = TlsPolicyLevel


class Far:
    """A domain with one server, that shows a certificate made for the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = made("authority", authority=True)
        self.own = made(MX, by=self.authority)
        self.names = exchanged("example.net", MX)
        self.server = Server()

    def show(self, own: Pair | None, *chain: Pair) -> None:
        context = shown(self.folder, own, *chain) if own else None
        self.server.features = {"tls_context": context} if context else {}

    def name(self, port: int, *records: str) -> None:
        self.names.records[f"_{port}._tcp.{MX}", "TLSA"] = list(records)

    def route(self, *, validates: bool = False) -> OutboundSettings:
        def resolver() -> Resolver:
            asking = self.names.resolver()
            return enable_dnssec(asking) if validates else asking

        return OutboundSettings(
            make_resolver=resolver,
            mx_port=self.server.port,
            trusted_context=trusting(self.authority),
            trusts_dnssec=validates,
        )


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path)


async def came(ada: Client, world: Environment, route: OutboundSettings) -> tuple[State, str]:
    """What became of a message, and by what TLS, or why not."""
    async with working(world, route):
        row = (await settled(world, await send(ada, NamedAddress("carol@example.net"))))["carol"]
    return row.state, row.tls if row.state is State.DELIVERED else row.last_response


@pytest.mark.parametrize(
    ("level", "parameters", "shows", "ends"),
    [
        (Level.NONE, None, "own", None),
        (Level.MAY, None, "own", "256"),
        (Level.MAY, None, "", None),
        (Level.ENCRYPT, None, "other", "256"),
        (Level.ENCRYPT, None, "", "4.7.5 TLS failed: not offered"),
        (Level.ENCRYPT, "protocols=TLSv1.2", "own", "256"),
        (Level.VERIFY, None, "own", "(policy)"),
        (
            Level.VERIFY,
            "match=other.example",
            "own",
            f"4.7.5 TLS failed: its certificate is for {MX}",
        ),
        (Level.VERIFY, None, "other", "4.7.5"),
        (Level.SECURE, None, "own", "(policy)"),
        (Level.SECURE, "match=example.net", "own", "4.7.5"),
        (Level.SECURE, "match=.example.net", "own", "(policy)"),
        (Level.SECURE, "match=hostname", "own", "(policy)"),
        (Level.SECURE, "match=.example.net", "expired", "4.7.5"),
        (Level.SECURE, "nonsense", "own", "4.7.5 The policy"),
        (Level.FINGERPRINT, "match=" + 32 * "00:" + "00", "own", "4.7.5"),
        (Level.FINGERPRINT, "match=" + 31 * "00:" + "00", "own", "4.7.5"),
        (Level.FINGERPRINT, None, "own", "4.7.5 The policy names no fingerprint"),
        (Level.DANE, None, "own", "256"),
        (Level.DANE_ONLY, None, "own", "4.7.5 DNS names no certificate"),
    ],
)
async def test_a_policy_is_kept_to(  # noqa: PLR0913, PLR0917 - a case
    ada: Client,
    world: Environment,
    far: Far,
    level: TlsPolicyLevel,
    parameters: str | None,
    shows: str,
    ends: str | None,
) -> None:
    pairs = {
        "own": far.own,
        "other": made("other.example"),
        "expired": made(MX, by=far.authority, days=-1),
        "": None,
    }
    far.show(pairs[shows])
    await policy(world, "example.net", level, parameters)
    async with answering(far.names), listening(far.server):
        state, told = await came(ada, world, far.route())
    wanted = State.DELIVERED if ends is None or ends in ("256", "(policy)") else State.DEFERRED
    assert state is wanted, told
    if wanted is State.DEFERRED:
        assert ends is not None
        assert told.startswith(ends)
        assert far.server.mails == []
    else:
        assert (ends is None) == (told is None)
        assert not ends or ends in told
        assert far.server.mails[0].encrypted is (ends is not None)
    if parameters == "protocols=TLSv1.2":
        assert told.startswith("TLSv1.2 ")


@pytest.mark.parametrize("what", ["certificate", "key", "sha1"])
async def test_fingerprints_are_of_certificates_or_keys(
    ada: Client, world: Environment, far: Far, what: str
) -> None:
    stranger = made("elsewhere.example", days=-5)
    far.show(stranger)
    digests = {
        "certificate": hashlib.sha256(stranger.der).hexdigest(),
        "key": hashlib.sha256(stranger.spki).hexdigest(),
        "sha1": hashlib.sha1(stranger.der, usedforsecurity=False).hexdigest(),
    }
    given = f"match={'00' * 32}|{digests[what].upper()}"
    await policy(world, ".net", Level.FINGERPRINT, given)
    async with answering(far.names), listening(far.server):
        state, told = await came(ada, world, far.route())
    assert (state, told.endswith("(policy)")) == (State.DELIVERED, True)


async def test_what_waits_for_tls_in_vain_comes_back_as_5_7(
    ada: Client, world: Environment, far: Far, clock: Clock
) -> None:
    await policy(world, "example.net", Level.ENCRYPT)
    async with answering(far.names), listening(far.server), working(world, far.route()):
        key = await send(ada, NamedAddress("carol@example.net"))
        await settled(world, key)
        clock.tick(days=6)
        ring(world)

        async def over() -> bool:
            return (await deliveries(world, key))["carol"].state is State.EXPIRED

        await until(over)
        row = (await deliveries(world, key))["carol"]
    assert row.last_response.startswith("5.7.5 ")
    (bounce,) = await inbox(ada)
    assert "5.7.5" in bounce.preview
    assert far.server.mails == []


async def test_dane_checks_the_certificate_that_dns_names(
    ada: Client, world: Environment, far: Far
) -> None:
    stranger = made("elsewhere.example", days=-5)  # of usage 3 neither name nor time are looked at
    far.show(stranger)
    async with answering(far.names), listening(far.server):
        far.name(far.server.port, f"3 1 1 {stranger.digest()}")
        state, told = await came(ada, world, far.route(validates=True))
        assert (state, told.endswith("(DANE)")) == (State.DELIVERED, True)
        for record in (
            f"3 0 1 {stranger.digest(spki=False)}",
            f"3 0 0 {stranger.der.hex()}",
            f"3 1 0 {stranger.spki.hex()}",
        ):
            far.name(far.server.port, f"3 1 1 {far.own.digest()}", record)
            state, told = await came(ada, world, far.route(validates=True))
            assert (state, told.endswith("(DANE)")) == (State.DELIVERED, True), told
        far.name(far.server.port, f"3 1 1 {far.own.digest()}")
        state, told = await came(ada, world, far.route(validates=True))
    assert (state, told[:17]) == (State.DEFERRED, "4.7.5 TLS failed:")
    assert len(far.server.mails) == 4


async def test_dane_goes_by_an_authority_of_the_domains_own(
    ada: Client, world: Environment, far: Far
) -> None:
    root = made("root", authority=True)
    between = made("between", by=root, authority=True)
    own = made(MX, by=between)
    cases = [
        ((own, between, root), f"2 0 1 {root.digest(spki=False)}", True),
        ((own, between), f"2 1 1 {between.digest()}", True),
        ((own, between), f"2 0 0 {root.der.hex()}", True),
        ((own, between), f"2 1 1 {root.digest()}", False),
        ((made("other.example", by=between), between), f"2 1 1 {between.digest()}", False),
        ((made(MX, by=between, days=-1), between), f"2 1 1 {between.digest()}", False),
        ((made(MX), between), f"2 1 1 {between.digest()}", False),
        ((made(MX, by=own), own), f"2 1 1 {own.digest()}", False),  # it is no authority
    ]
    async with answering(far.names), listening(far.server):
        for chain, record, good in cases:
            far.show(*chain)
            far.name(far.server.port, record)
            state, told = await came(ada, world, far.route(validates=True))
            assert state is (State.DELIVERED if good else State.DEFERRED), (record[:8], told)
            assert told.endswith("(DANE)") if good else told.startswith("4.7.5 TLS failed:")


async def test_dane_never_falls_back_to_clear(ada: Client, world: Environment, far: Far) -> None:
    async with answering(far.names), listening(far.server):
        for record in (f"3 1 1 {far.own.digest()}", "0 0 1 " + "00" * 32, "3 9 1 " + "00" * 32):
            far.name(far.server.port, record)
            state, told = await came(ada, world, far.route(validates=True))
            assert (state, told) == (State.DEFERRED, "4.7.5 TLS failed: not offered")
        far.show(made("elsewhere.example"))  # what cannot be used asks for encryption, and no more
        state, told = await came(ada, world, far.route(validates=True))
        assert (state, told[:7]) == (State.DELIVERED, "TLSv1.3")
        far.names.broken.add(f"_{far.server.port}._tcp.{MX}")
        state, told = await came(ada, world, far.route(validates=True))
    assert (state, told[:22]) == (State.DEFERRED, "4.7.5 DNS does not say")
    assert all(mail.encrypted for mail in far.server.mails)


@pytest.mark.parametrize("gap", ["example.net", MX, "TLSA", "resolver"])
async def test_what_is_not_signed_all_the_way_is_no_dane(
    ada: Client, world: Environment, far: Far, gap: str
) -> None:
    far.show(made("elsewhere.example"))
    async with answering(far.names), listening(far.server):
        far.name(far.server.port, f"3 1 1 {far.own.digest()}")
        record = f"_{far.server.port}._tcp.{MX}"
        signed = {"example.net", MX, record}
        far.names.signed = signed - {record if gap == "TLSA" else gap}
        state, told = await came(ada, world, far.route(validates=gap != "resolver"))
    assert (state, "DANE" in told) == (State.DELIVERED, False)


async def test_the_next_server_may_keep_to_the_policy(
    ada: Client, world: Environment, tmp_path: Path
) -> None:
    authority = made("authority", authority=True)
    good = made("mx2.example.net", by=authority)
    clear = Server()
    names: Names = exchanged("example.net", MX, "mx2.example.net")
    await policy(world, "example.net", Level.SECURE, "match=.example.net")
    async with answering(names), listening(clear):
        strict = Server(features={"tls_context": shown(tmp_path, good)})
        route = OutboundSettings(
            make_resolver=names.resolver, mx_port=clear.port, trusted_context=trusting(authority)
        )
        async with listening(strict, "127.0.0.2", clear.port):
            state, told = await came(ada, world, route)
    assert (state, told.endswith("(policy)")) == (State.DELIVERED, True)
    assert (len(clear.mails), len(strict.mails)) == (0, 1)


async def test_an_old_protocol_is_not_spoken(ada: Client, world: Environment, far: Far) -> None:
    context = shown(far.folder, far.own)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    far.server.features = {"tls_context": context}
    await policy(world, "example.net", Level.ENCRYPT, "protocols=>=TLSv1.3")
    async with answering(far.names), listening(far.server):
        state, told = await came(ada, world, far.route())
    assert (state, told[:17]) == (State.DEFERRED, "4.7.5 TLS failed:")

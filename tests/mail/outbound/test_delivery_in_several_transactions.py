"""A message handed over in several transactions: nobody gets it twice, and nobody waits."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from mail.mime.header_encoding import NamedAddress
from mail.routing.mx_hosts import OutboundSettings
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.mail_servers.queue_worker import (
    PACE,
    State,
    inbox,
    relay,
    send,
    settled,
    until,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import Names, Server, answering, listening

MANY = [NamedAddress(f"n{nth}@example.net") for nth in range(130)]
LARGE = replace(PACE, claim_size=200)


class Shut(asyncio.Protocol):
    """Whoever comes is sent away without a word."""

    def connection_made(self, transport: Any) -> None:
        transport.abort()


@dataclass
class OneEach(Server):
    """It hangs up when it is given a second message; with `shut` it is gone from then on."""

    shut: bool = False

    async def handle_MAIL(  # noqa: N802
        self, server: Any, _session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if self.mails and getattr(server, "used", False):
            server.transport.abort()
        server.used = True
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    def session(self) -> Any:
        return Shut() if self.shut and self.mails else super().session()


def everybody(*servers: Server) -> list[str]:
    """Who got it, once for each time."""
    return sorted(to for server in servers for mail in server.mails for to in mail.to)


async def test_what_one_server_has_taken_is_not_handed_to_the_next(
    ada: Client, world: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = OneEach(shut=True), Server()
    names = Names(
        {
            ("example.net", "MX"): ["10 mx1.example.net.", "20 mx2.example.net."],
            ("mx1.example.net", "A"): ["127.0.0.1"],
            ("mx2.example.net", "A"): ["127.0.0.2"],
        }
    )
    async with (
        listening(first),
        listening(second, "127.0.0.2", first.port),
        answering(names),
        working(world, OutboundSettings(make_resolver=names.resolver, mx_port=first.port), LARGE),
    ):
        rows = await settled(world, await send(ada, *MANY))
    assert {(row.state, row.attempts, row.lease) for row in rows.values()} == {
        (State.DELIVERED, 1, None)
    }
    assert everybody(first, second) == sorted(each.address for each in MANY)
    assert [len(mail.to) for mail in (*first.mails, *second.mails)] == [100, 30]
    assert "a lease was lost" not in caplog.text


async def test_what_nobody_has_taken_yet_is_put_off_alone(ada: Client, world: Environment) -> None:
    async with (
        listening(OneEach(shut=True)) as there,
        working(world, relay(there), LARGE),
    ):
        rows = await settled(world, await send(ada, *MANY))
    states = [row.state for row in rows.values()]
    assert (states.count(State.RELAYED), states.count(State.DEFERRED)) == (100, 30)
    assert everybody(there) == sorted(
        row.recipient for row in rows.values() if row.state is State.RELAYED
    )


async def test_a_server_may_take_one_message_of_each_connection(
    ada: Client, world: Environment
) -> None:
    many = [NamedAddress(f"n{nth}@example.net") for nth in range(250)]
    async with (
        listening(OneEach()) as there,
        working(world, relay(there), replace(PACE, claim_size=300)),
    ):
        rows = await settled(world, await send(ada, *many))
    assert {row.state for row in rows.values()} == {State.RELAYED}
    assert [len(mail.to) for mail in there.mails] == [100, 100, 50]
    assert there.sessions == 3


async def test_nobody_of_the_first_hundred_is_no_reason_to_stop(
    ada: Client, world: Environment
) -> None:
    replies = {f"n{nth}": "550 5.1.1 No" for nth in range(100)}
    async with (
        listening(Server(replies=replies)) as there,
        working(world, relay(there), LARGE),
    ):
        rows = await settled(world, await send(ada, *MANY))
    states = [row.state for row in rows.values()]
    assert (states.count(State.BOUNCED), states.count(State.RELAYED)) == (100, 30)
    assert there.sessions == 1


class Forgetful(SMTP):
    """It knows the parameters of DSN in those commands only that are not in `forgets`."""

    forgets: tuple[str, ...] = ()

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802
        self.event_handler.said.append(f"MAIL {arg}")
        await super().smtp_MAIL(arg if "MAIL" in self.forgets else _bare(arg))

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802
        self.event_handler.said.append(f"RCPT {arg}")
        await super().smtp_RCPT(arg if "RCPT" in self.forgets else _bare(arg))


def _bare(arg: str | None) -> str | None:
    """A command without parameters of DSN."""
    words = (arg or "").split(" ")
    return " ".join(w for w in words if not w.startswith(("RET=", "ENVID=", "NOTIFY=", "ORCPT=")))


@dataclass
class Offering(Server):
    """It offers DSN, whatever it knows of it."""

    forgets: tuple[str, ...] = ()
    together: bool = False
    said: list[str] | None = None

    async def handle_EHLO(  # noqa: N802
        self, _server: Any, session: Any, _envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        more = ["250-DSN", *(["250-PIPELINING"] if self.together else [])]
        return [responses[0], *more, *responses[1:]]

    def session(self) -> SMTP:
        self.sessions += 1
        self.said = self.said or []
        made = Forgetful(self, hostname="there", **self.features)
        made.forgets = self.forgets
        return made

    def asked(self) -> list[str]:
        """The commands it was given, by whether they spoke of DSN."""
        return [
            line.split(" ")[0] + (" DSN" if "ENVID=" in line or "ORCPT=" in line else "")
            for line in self.said or []
        ]


@pytest.mark.parametrize("together", [False, True], ids=["in turn", "together"])
@pytest.mark.parametrize(
    ("forgets", "asked"),
    [
        (("MAIL",), ["MAIL DSN", "MAIL", "RCPT", "RCPT"]),
        (("RCPT",), ["MAIL DSN", "RCPT DSN", "RCPT DSN", "MAIL", "RCPT", "RCPT"]),
        (("MAIL", "RCPT"), ["MAIL DSN", "MAIL", "RCPT", "RCPT"]),
        ((), ["MAIL DSN", "RCPT DSN", "RCPT DSN"]),
    ],
)
async def test_who_offers_dsn_and_does_not_know_it_is_asked_again_without(
    ada: Client, world: Environment, *, forgets: tuple[str, ...], asked: list[str], together: bool
) -> None:
    async with (
        listening(Offering(forgets=forgets, together=together)) as there,
        working(world, relay(there)),
    ):
        assert isinstance(there, Offering)
        rows = await settled(world, await send(ada))
    assert {(row.state, row.attempts) for row in rows.values()} == {(State.RELAYED, 1)}
    assert [mail.to for mail in there.mails] == [["carol@example.net", "dave@example.net"]]
    assert there.sessions == 1
    told = there.asked()
    if together and "MAIL" in forgets:  # what was said together was said before the answer
        told = [told[0], *told[3:]]
    assert told == asked


async def test_who_is_refused_for_the_address_is_refused_and_the_others_get_it_once(
    ada: Client, world: Environment
) -> None:
    replies = {"carol": "501 5.1.3 No such form"}
    async with listening(Offering(replies=replies)) as there, working(world, relay(there)):
        rows = await settled(world, await send(ada))
    assert (rows["carol"].state, rows["carol"].last_code) == (State.BOUNCED, 501)
    assert rows["dave"].state is State.RELAYED
    assert [mail.to for mail in there.mails] == [["dave@example.net"]]


@pytest.mark.parametrize("forgets", [(), ("RCPT",)])
async def test_who_asked_for_a_report_has_one_from_whoever_can(
    ada: Client, world: Environment, forgets: tuple[str, ...]
) -> None:
    """Of those whom it took without the parameters the report is ours."""
    async with listening(Offering(forgets=forgets)) as there, working(world, relay(there)):
        await settled(world, await send(ada, request_dsn=True))

        async def told() -> bool:
            return bool(await inbox(ada)) or not forgets

        await until(told)
    assert len(await inbox(ada)) == len(forgets)

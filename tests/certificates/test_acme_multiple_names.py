"""Certificates of several names: each is proved, and all of them come or none."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mail.tls.acme_client import AcmeError
from models.runtime.environment import Environment
from resolvers.certificates import acme_worker, certificate_reload, certificates
from tests.conftest import Client
from tests.support.mail_servers.smtp_and_dns_servers import Names, answering
from tests.support.operations.certificate_operations import (
    BEGIN,
    DAY,
    NAME,
    ONE,
    RENEW,
    Signer,
    put,
)
from tests.support.servers.acme_platforms import alone, placed
from tests.support.stores.counter_check import rows

OTHERS = ["imap.example.org", "xn--bcher-kva.example", "mail.example.net"]
RECORDS: dict[Any, list[str]] = {(name, "A"): ["127.0.0.1"] for name in [NAME, *OTHERS]}


async def test_all_names_are_proved_found_and_kept_when_it_is_renewed(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with placed(world, root, tmp_path, RECORDS) as place:
        given = ["IMAP.example.org.", "bücher.example", NAME, "imap.example.org", OTHERS[2]]
        made = await put(place.root, serverName=NAME, acme=True, acmeNames=given)
        assert (made["errors"], made["certificate"]["acmeNames"]) == ([], OTHERS)
        assert await acme_worker.process_next_certificate(place.world)
        one = await place.state()
        assert one["acmeState"].startswith("valid, renewed from "), one
        assert sorted(one["altNames"]) == sorted([NAME, *OTHERS])
        assert await rows(world, "SELECT * FROM acme_challenges") == []
        ring = certificate_reload.new_keyring(place.world)
        await certificate_reload.load_changed_certificates(place.world, ring)
        found = [ring.certificates_for_name(name) for name in [NAME, *OTHERS]]
        assert [len(held) for held in found] == [1] * 4
        assert ring.certificates_for_name("other.example.org") == []

        await put(place.root, serverName=NAME, acme=True, description="Of mail")
        assert not await acme_worker.process_next_certificate(place.world)  # its schedule stays
        ends = datetime.fromisoformat(one["expiresAt"])
        place.clock.by = ends - datetime.now(UTC) - 29 * DAY
        assert await acme_worker.process_next_certificate(place.world)
        two = await place.state()
        assert two["acmeState"].startswith("valid, renewed from "), two
        assert two["fingerprintSha256"] != one["fingerprintSha256"]
        assert sorted(two["altNames"]) == sorted([NAME, *OTHERS])


async def test_a_new_name_is_ordered_at_once_and_one_less_with_the_next_renewal(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with placed(world, root, tmp_path, RECORDS) as place:
        await put(place.root, serverName=NAME, acme=True)
        assert await acme_worker.process_next_certificate(place.world)
        more = await put(place.root, serverName=NAME, acme=True, acmeNames=OTHERS[:1])
        assert more["certificate"]["acmeState"] == certificates.STATE_WAITING
        assert await acme_worker.process_next_certificate(place.world)
        one = await place.state()
        assert sorted(one["altNames"]) == sorted([NAME, OTHERS[0]])
        less = await put(place.root, serverName=NAME, acme=True, acmeNames=[])
        assert less["certificate"]["acmeState"].startswith("valid")
        assert not await acme_worker.process_next_certificate(place.world)
        await place.root(RENEW, input={"ids": [one["id"]]})
        assert await acme_worker.process_next_certificate(place.world)
        assert (await place.state())["altNames"] == [NAME]


async def test_one_that_cannot_be_proved_is_named_and_nothing_comes(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    records = RECORDS | {(OTHERS[1], "A"): ["127.0.0.9"], (OTHERS[2], "A"): ["127.0.0.9"]}
    async with placed(world, root, tmp_path, records) as place:
        await put(place.root, serverName=NAME, acme=True, acmeNames=OTHERS)
        assert await acme_worker.process_next_certificate(place.world)
        one = await place.state()
        assert one["acmeState"].startswith("failed, tried again 20"), one
        found = [f" UTC: {name}: connection: " in one["acmeState"] for name in OTHERS[1:]]
        assert any(found), one
        assert (one["altNames"], one["expiresAt"]) == ([], None)
        assert await rows(world, "SELECT * FROM acme_challenges") == []


async def test_one_that_the_authority_refuses_is_named(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with placed(world, root, tmp_path, RECORDS, domainBlocklist=[OTHERS[0]]) as place:
        await put(place.root, serverName=NAME, acme=True, acmeNames=OTHERS[:1])
        assert await acme_worker.process_next_certificate(place.world)
        state = (await place.state())["acmeState"]
        assert "rejectedIdentifier: " in state
        assert OTHERS[0] in state


async def test_those_that_dns_does_not_know_are_named(root: Client, world: Environment) -> None:
    await put(root, serverName=NAME, acme=True, acmeNames=OTHERS)
    known = {key: value for key, value in RECORDS.items() if key[0] not in OTHERS[1:]}
    async with answering(Names(known)) as names:
        assert await acme_worker.process_next_certificate(alone(world, names.port))
    state = (await root(ONE, by={"serverName": NAME}))["certificate"]["acmeState"]
    why = "DNS has no address for it: publish A or AAAA"
    assert state.endswith(f" UTC: {OTHERS[1]}: {why}; and not {OTHERS[2]}"), state


async def test_why_is_said_however_many_fail(root: Client, world: Environment) -> None:
    many = [f"n{nth}.example.org" for nth in range(99)]
    await put(root, serverName=NAME, acme=True, acmeNames=many)
    async with answering(Names({})) as names:
        assert await acme_worker.process_next_certificate(alone(world, names.port))
    state = (await root(ONE, by={"serverName": NAME}))["certificate"]["acmeState"]
    assert f" UTC: {NAME}: DNS has no address for it: publish A or AAAA; and not n0.exam" in state
    assert len(state) < 400


async def test_a_hundred_names_are_made(world: Environment, root: Client, tmp_path: Path) -> None:
    names = [f"n{nth}.example.org" for nth in range(99)]
    records = {(name, "A"): ["127.0.0.1"] for name in [NAME, *names]}
    async with placed(world, root, tmp_path, records) as place:
        await put(place.root, serverName=NAME, acme=True, acmeNames=names)
        assert await acme_worker.process_next_certificate(place.world)
        one = await place.state()
        assert one["acmeState"].startswith("valid"), one
        assert set(one["altNames"]) == {NAME, *names}


async def test_what_names_are_refused(root: Client, world: Environment) -> None:
    many = [f"n{nth}.example.org" for nth in range(100)]
    long = [NAME, *(f"n{nth}.example.org" for nth in range(99))]
    for names, index, rule in (
        (["a.example", "*.example.org"], 1, "wildcard"),
        (["localhost"], 0, "domain"),
        (["a.example", "b.example", "a b"], 2, "domain"),
        (["192.0.2.1"], 0, "domain"),
        ([""], 0, "domain"),
        (["a.example\r\nb.example"], 0, "domain"),
        (["x" * 300], 0, "domain"),
        (many, None, "max"),
        ([*long, "a.example"], None, "max"),
    ):
        answer = await put(root, serverName=NAME, acme=True, acmeNames=names)
        (error,) = answer["errors"]
        found = error["code"], error["path"], error["index"], error["constraint"]
        assert found == ("VALIDATION", ["acmeNames"], index, rule), names
    cert, key = Signer().issue()
    sent = {"serverName": NAME, "cert": cert, "privateKey": key}
    (error,) = (await put(root, **sent, acmeNames=["a.example"]))["errors"]
    assert (error["path"], error["constraint"]) == (["acmeNames"], "acme")
    assert await rows(world, "SELECT * FROM certificates") == []
    assert len((await put(root, serverName=NAME, acme=True, acmeNames=long))["errors"]) == 0


@pytest.mark.parametrize(
    ("inside", "waits"),
    [([NAME, "a.example.org"], False), (["*.example.org"], False), ([NAME], True)],
)
async def test_what_was_sent_is_replaced_at_once_where_a_name_is_missing(
    root: Client, inside: list[str], waits: bool
) -> None:
    cert, key = Signer().issue(inside, begin=BEGIN)
    sent = {"serverName": NAME, "cert": cert, "privateKey": key, "acme": True}
    one = (await put(root, **sent, acmeNames=["a.example.org"]))["certificate"]
    assert (one["acmeState"] == certificates.STATE_TERMS_NOT_AGREED) is waits
    off = await put(root, serverName=NAME)
    assert (off["certificate"]["acme"], off["certificate"]["acmeNames"]) == (False, [])


async def test_a_change_of_names_stops_the_order_that_goes_on(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with placed(world, root, tmp_path, RECORDS) as place:
        await put(place.root, serverName=NAME, acme=True)
        going = asyncio.create_task(acme_worker.process_next_certificate(place.world))
        async with asyncio.timeout(10):
            while not await rows(world, "SELECT lease FROM certificates WHERE lease IS NOT NULL"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await put(place.root, serverName=NAME, acme=True, acmeNames=OTHERS[:1])
        assert await going
        assert (await place.state())["expiresAt"] is None
        assert await acme_worker.process_next_certificate(place.world)
        assert sorted((await place.state())["altNames"]) == sorted([NAME, OTHERS[0]])


async def test_names_may_be_of_other_owners_by_caa(root: Client, world: Environment) -> None:
    await put(root, serverName=NAME, acme=True, acmeNames=OTHERS)
    caa = {("example.net", "CAA"): ['0 issue "other.example"']}
    async with answering(Names(RECORDS | caa)) as names:
        there = alone(world, names.port)

        async def allowed(name: str) -> None:
            await acme_worker._require_caa_allows(there, name, ("ours.example",))  # noqa: SLF001

        with pytest.raises(AcmeError, match=r"mail\.example\.net: CAA of example\.net does"):
            await acme_worker._check_each_name([NAME, *OTHERS], allowed)  # noqa: SLF001 - pebble has no names

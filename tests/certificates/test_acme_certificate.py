"""Certificates that a real ACME server makes, by challenges that it looks for itself."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mail.tls import acme_client
from models.certificates import AcmeChallenge
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox
from resolvers.certificates import acme_accounts, acme_worker, certificate_reload, certificates
from tests.conftest import Client
from tests.support.mail_servers.smtp_and_dns_servers import Names, answering
from tests.support.operations.certificate_operations import DELETE, NAME, ONE, RENEW, Signer, put
from tests.support.servers.acme_platforms import RECORDS, alone, placed
from tests.support.stores.counter_check import rows


async def test_a_certificate_is_made_served_and_renewed_with_its_key(
    world: Environment, root: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with placed(world, root, tmp_path) as place:
        made = await put(place.root, serverName=NAME, acme=True)
        assert (made["errors"], made["certificate"]["acmeState"]) == (
            [],
            certificates.STATE_WAITING,
        )
        assert await acme_worker.process_next_certificate(place.world)
        assert not await acme_worker.process_next_certificate(place.world)
        one = await place.state()
        assert one["acmeState"].startswith("valid, renewed from "), one
        assert one["altNames"] == [NAME]
        assert "Pebble" in one["issuer"]
        ring = certificate_reload.new_keyring(place.world)
        await certificate_reload.load_changed_certificates(place.world, ring)
        assert ring.context_for_name(NAME) is not None
        assert await rows(world, "SELECT * FROM acme_challenges") == []
        asked = "SELECT chain, private_key, spki, id FROM certificates"
        ((chain, sealed, spki, key),) = await rows(world, asked)
        assert len(x509.load_pem_x509_certificates(chain.encode())) > 1
        pem = place.world.secret_box.decrypt(sealed, certificates.encryption_context(key))
        assert pem.splitlines()[3] not in caplog.text
        (account,) = await rows(world, "SELECT directory, url FROM acme_accounts")
        assert account[1].startswith("https://localhost")

        due = datetime.fromisoformat(one["expiresAt"]) - timedelta(days=30)
        place.clock.by = due - datetime.now(UTC) - timedelta(days=2)
        assert not await acme_worker.process_next_certificate(place.world)
        place.clock.by = due - datetime.now(UTC) + timedelta(minutes=1)
        assert await acme_worker.process_next_certificate(place.world)
        two = await place.state()
        assert two["acmeState"].startswith("valid, renewed from "), two
        assert two["fingerprintSha256"] != one["fingerprintSha256"]
        (again,) = await rows(world, "SELECT spki, version FROM certificates")
        assert again == (spki, 2)
        assert await rows(world, "SELECT directory, url FROM acme_accounts") == [account]
        assert "PRIVATE KEY" not in caplog.text


async def test_who_sent_the_key_keeps_it_and_admins_have_it_made_at_once(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with placed(world, root, tmp_path) as place:
        cert, key = Signer().issue(begin=datetime.now(UTC) - timedelta(days=1))
        sent = {"serverName": NAME, "cert": cert, "privateKey": key, "acme": True}
        one = (await put(place.root, **sent))["certificate"]
        assert not await acme_worker.process_next_certificate(place.world)
        (before,) = await rows(world, "SELECT spki FROM certificates")
        await place.root(RENEW, input={"ids": [one["id"]]})
        assert await acme_worker.process_next_certificate(place.world)
        two = await place.state()
        assert "Pebble" in two["issuer"], two
        assert await rows(world, "SELECT spki FROM certificates") == [before]


async def test_what_fails_is_said_and_tried_again_ever_later(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with placed(world, root, tmp_path, reached=False) as place:
        one = (await put(place.root, serverName=NAME, acme=True))["certificate"]
        pauses = []
        for _ in range(2):
            assert await acme_worker.process_next_certificate(place.world)
            state = (await place.state())["acmeState"]
            assert state.startswith("failed, tried again 20"), state
            assert "connection: " in state
            assert not await acme_worker.process_next_certificate(place.world)
            (row,) = await rows(world, "SELECT acme_next_at, acme_failures FROM certificates")
            assert await rows(world, "SELECT * FROM acme_challenges") == []
            at = row[0] if isinstance(row[0], datetime) else datetime.fromisoformat(row[0])
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            pauses.append((at - place.clock()).total_seconds())
            place.clock.by += timedelta(seconds=pauses[-1] + 1)
        assert 500 < pauses[0] < 700
        assert 1000 < pauses[1] < 1400
        assert row[1] == 2
        await place.root(RENEW, input={"ids": [one["id"]]})
        assert await acme_worker.process_next_certificate(place.world)
        (row,) = await rows(world, "SELECT acme_failures FROM certificates")
        assert row == (1,)


async def test_an_authority_that_has_forgotten_us_is_asked_anew(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with placed(world, root, tmp_path) as place:
        made = (await put(place.root, serverName=NAME, acme=True))["certificate"]
        base = place.world.options.acme_directory.removesuffix("/dir")
        account = await acme_accounts.load_or_create_account(
            place.world, place.world.options.acme_directory
        )
        await acme_accounts.store_account_url(place.world, account.id, f"{base}/my-account/none")
        assert await acme_worker.process_next_certificate(place.world)
        assert "failed" in (await place.state())["acmeState"]
        await place.root(RENEW, input={"ids": [made["id"]]})
        assert await acme_worker.process_next_certificate(place.world)
        assert (await place.state())["acmeState"].startswith("valid")


async def test_two_workers_take_a_step_once_and_a_deleted_one_is_lost(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with placed(world, root, tmp_path) as place:
        one = (await put(place.root, serverName=NAME, acme=True))["certificate"]
        stepped = asyncio.gather(
            acme_worker.process_next_certificate(place.world),
            acme_worker.process_next_certificate(place.world),
        )
        assert sorted(await stepped) == [False, True]
        assert (await place.state())["acmeState"].startswith("valid")
        await place.root(RENEW, input={"ids": [one["id"]]})
        going = asyncio.create_task(acme_worker.process_next_certificate(place.world))
        async with asyncio.timeout(10):
            while not await rows(world, "SELECT lease FROM certificates WHERE lease IS NOT NULL"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await place.root(DELETE, input={"ids": [one["id"]]})
        assert await going
        assert await rows(world, "SELECT * FROM certificates") == []
        assert await rows(world, "SELECT * FROM acme_challenges") == []


async def test_a_worker_that_is_stopped_gives_it_back(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with placed(world, root, tmp_path) as place:
        await put(place.root, serverName=NAME, acme=True)
        going = asyncio.create_task(acme_worker.run_worker(place.world))
        leased = "SELECT lease FROM certificates WHERE lease IS NOT NULL"
        async with asyncio.timeout(10):
            while not await rows(world, leased):  # noqa: ASYNC110 - rows have no event
                await asyncio.sleep(0.01)
        going.cancel()
        await asyncio.wait([going])
        assert await rows(world, leased) == []
        assert await acme_worker.process_next_certificate(place.world)
        assert (await place.state())["acmeState"].startswith("valid")


# without an authority


async def test_nothing_is_asked_before_the_terms_are_agreed_to(
    root: Client, world: Environment
) -> None:
    await put(root, serverName=NAME, acme=True)
    assert not await acme_worker.process_next_certificate(world)
    await root(
        'mutation { settingSet(input: {key: "acme.termsAgreed", value: true}) { replayed } }'
    )
    async with answering(Names({})) as names:
        there = alone(world, names.port)
        assert await acme_worker.process_next_certificate(there)
    state = (await root(ONE, by={"serverName": NAME}))["certificate"]["acmeState"]
    assert state.endswith(f"{NAME}: DNS has no address for it: publish A or AAAA")


async def test_a_server_that_is_not_there_is_said(root: Client, world: Environment) -> None:
    await put(root, serverName=NAME, acme=True)
    async with answering(Names(dict(RECORDS))) as names:
        assert await acme_worker.process_next_certificate(alone(world, names.port))
    state = (await root(ONE, by={"serverName": NAME}))["certificate"]["acmeState"]
    assert "the ACME server does not answer" in state


@pytest.mark.parametrize(
    ("records", "allowed"),
    [
        ({}, True),
        ({("example.org", "CAA"): ['0 issue "ours.example"']}, True),
        ({("example.org", "CAA"): ['0 issue "x.example"', '0 issue "ours.example; a=b"']}, True),
        ({("example.org", "CAA"): ['0 issue "other.example"']}, False),
        ({("example.org", "CAA"): ['0 issue ";"']}, False),
        ({("example.org", "CAA"): ['0 iodef "mailto:a@b.example"']}, True),
        ({(NAME, "CAA"): ['0 issue "ours.example"'],
          ("example.org", "CAA"): ['0 issue "other.example"']}, True),
    ],
)  # fmt: skip
async def test_caa_is_looked_at_before(
    world: Environment, records: Mapping[Any, list[str]], allowed: bool
) -> None:
    async with answering(Names(dict(RECORDS) | dict(records))) as names:
        there = alone(world, names.port)
        if allowed:
            await acme_worker._require_caa_allows(there, NAME, ("ours.example",))  # noqa: SLF001 - pebble has none
        else:
            with pytest.raises(acme_client.AcmeError, match=r"CAA of example\.org does not let"):
                await acme_worker._require_caa_allows(there, NAME, ("ours.example",))  # noqa: SLF001


async def test_challenges_are_answered_to_anybody_and_nothing_else(
    root: Client, world: Environment
) -> None:
    one = (await put(root, serverName=NAME, acme=True))["certificate"]
    assert one["acme"]
    ((key,),) = await rows(world, "SELECT id FROM certificates")
    ends = world.now() + timedelta(hours=1)
    async with world.write_session() as session:
        for token, at in (("a-_1", ends), ("old", world.now())):
            session.add(
                AcmeChallenge(token=token, certificate_id=key, answer=f"{token}.x", expires_at=at)
            )
    base = "/.well-known/acme-challenge/"
    found = await root.http.get(f"{base}a-_1")
    assert (found.status_code, found.text) == (200, "a-_1.x")
    for token in ("old", "b", "a-_1/", "", "%00", "a" * 300, "..%2fmetrics", "ä"):
        assert (await root.http.get(base + token)).status_code == 404, token
    assert (await root.http.post(f"{base}a-_1")).status_code == 405


async def test_an_account_whose_key_is_lost_is_said_to_be(world: Environment) -> None:
    directory = "https://localhost/dir"
    await acme_accounts.load_or_create_account(world, directory)
    other = replace(world, secret_box=SecretBox.with_new_key())
    with pytest.raises(acme_client.AcmeError, match="bring the vault back"):
        await acme_accounts.load_or_create_account(other, directory)

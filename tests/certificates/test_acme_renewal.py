"""Renewals when the authority asks for them (RFC 9773).

Debian's pebble knows nothing of that: a front of the tests says it, and hands on all else.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from mail.tls import acme_client
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from resolvers.certificates import acme_worker
from tests.conftest import Client
from tests.support.operations.certificate_operations import DAY, NAME, RENEW, Signer, pem_of, put
from tests.support.servers.acme_platforms import Place, placed
from tests.support.servers.acme_proxy import ORDERS, Front, Said, front
from tests.support.stores.counter_check import journal, rows

HOUR = timedelta(hours=1)


def window(start: datetime, end: datetime, **headers: str) -> Said:
    """What is said of a renewal."""
    spelt = {"start": f"{start:%Y-%m-%dT%H:%M:%SZ}", "end": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
    return Said(
        {"suggestedWindow": spelt}, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def moment(text: Any) -> datetime:
    at = text if isinstance(text, datetime) else datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


async def times(world: Environment) -> tuple[datetime, datetime]:
    """When it is renewed, and when the next step is."""
    ((renew, step),) = await rows(world, "SELECT acme_renew_at, acme_next_at FROM certificates")
    return moment(renew), moment(step)


@asynccontextmanager
async def advised(
    world: Environment, root: Client, folder: Path, said: Said
) -> AsyncIterator[tuple[Place, Front]]:
    """A certificate that is issued, of an authority that says this of its renewal."""
    async with placed(world, root, folder) as place, front(place.there) as before:
        before.renewals = said
        place.options(acme_directory=before.directory)
        await put(place.root, serverName=NAME, acme=True)
        assert await acme_worker.process_next_certificate(place.world)
        assert (await place.state())["acmeState"].startswith("valid")
        yield place, before


async def test_it_is_renewed_in_the_window_and_said_what_it_replaces(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    start, end = now + 5 * DAY, now + 7 * DAY
    async with advised(world, root, tmp_path, window(start, end, Retry_After="7200")) as (
        place,
        before,
    ):
        assert await acme_worker.process_next_certificate(place.world)  # the look
        renew, step = await times(world)
        assert start - HOUR < renew < end + HOUR
        assert 2 * HOUR - timedelta(minutes=2) < step - now < 2 * HOUR + timedelta(minutes=9)
        one = await place.state()
        assert one["acmeState"] == f"valid, renewed on {renew:%Y-%m-%d} as its authority asks"
        assert not await acme_worker.process_next_certificate(place.world)

        told = len(await journal(world, PLATFORM))
        place.clock.by = 3 * HOUR
        assert await acme_worker.process_next_certificate(place.world)
        assert (await times(world))[0] == renew  # chance is not tried again
        assert len(await journal(world, PLATFORM)) == told  # nothing shows, nothing is told
        assert len(before.looks) == 2

        place.clock.by = renew - datetime.now(UTC) - timedelta(minutes=5)
        assert await acme_worker.process_next_certificate(place.world)  # a look again
        assert (await place.state())["fingerprintSha256"] == one["fingerprintSha256"]
        place.clock.by = renew - datetime.now(UTC) + timedelta(minutes=1)
        assert await acme_worker.process_next_certificate(place.world)
        two = await place.state()
        assert two["acmeState"].startswith("valid"), two
        assert two["fingerprintSha256"] != one["fingerprintSha256"]
        (first, second) = before.orders
        assert "replaces" not in first
        assert second["replaces"] == before.looks[0]


async def test_a_window_that_has_passed_renews_it_but_not_again_and_again(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    past = datetime.now(UTC) - 20 * DAY
    async with advised(world, root, tmp_path, window(past, past + DAY)) as (place, before):
        one = await place.state()
        assert await acme_worker.process_next_certificate(place.world)
        assert not await acme_worker.process_next_certificate(
            place.world
        )  # it is new: it serves for a day
        place.clock.by = 2 * DAY
        assert await acme_worker.process_next_certificate(place.world)
        two = await place.state()
        assert two["fingerprintSha256"] != one["fingerprintSha256"]
        assert len(before.orders) == 2


@pytest.mark.parametrize(
    ("after", "least", "most"),
    [
        ("0", timedelta(seconds=50), timedelta(minutes=2)),
        ("-5", timedelta(seconds=50), timedelta(minutes=2)),
        ("soon", 6 * HOUR - timedelta(minutes=2), 6 * HOUR + timedelta(minutes=2)),
        ("99999999999999999999", 6 * HOUR - timedelta(minutes=2), 6 * HOUR + timedelta(minutes=2)),
        ("31536000", DAY - timedelta(minutes=2), DAY + timedelta(minutes=2)),
        ("Fri, 01 Jan 2100 00:00:00 GMT", DAY - timedelta(minutes=2), DAY + timedelta(minutes=2)),
    ],
)
async def test_how_often_it_is_asked_has_bounds(  # noqa: PLR0913, PLR0917 - a table
    world: Environment, root: Client, tmp_path: Path, after: str, least: timedelta, most: timedelta
) -> None:
    now = datetime.now(UTC)
    said = window(now + 40 * DAY, now + 42 * DAY, Retry_After=after)
    async with advised(world, root, tmp_path, said) as (place, _before):
        assert await acme_worker.process_next_certificate(place.world)
        assert least < (await times(world))[1] - datetime.now(UTC) < most


NEVER = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "said",
    [
        Said.problem("serverInternal", 500),
        Said({}, 404),
        Said(b"no JSON"),
        Said({}),
        Said([]),
        Said({"suggestedWindow": {}}),
        Said({"suggestedWindow": {"start": "soon", "end": "later"}}),
        window(NEVER + DAY, NEVER),
        window(NEVER, NEVER),
    ],
)
async def test_without_an_answer_our_own_rule_holds(
    world: Environment, root: Client, tmp_path: Path, said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    async with advised(world, root, tmp_path, said) as (place, before):
        (renew, _), one = await times(world), await place.state()
        assert await acme_worker.process_next_certificate(place.world)
        assert "does not say when" in caplog.text
        assert "broke" not in caplog.text
        after, step = await times(world)
        assert after == renew
        assert timedelta(hours=5) < step - datetime.now(UTC) < timedelta(hours=7)
        assert await place.state() == one
        assert len(before.looks) == 1
        assert await rows(world, "SELECT acme_failures FROM certificates") == [(0,)]
        ends = moment(one["expiresAt"])
        assert ends - 31 * DAY - HOUR < renew < ends - 30 * DAY + HOUR


async def test_what_was_asked_before_holds_where_it_is_earlier(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    async with advised(world, root, tmp_path, window(now + 9 * DAY, now + 10 * DAY)) as (
        place,
        before,
    ):
        assert await acme_worker.process_next_certificate(place.world)
        early = (await times(world))[0]
        before.renewals = Said({}, 503)
        place.clock.by = 7 * HOUR
        assert await acme_worker.process_next_certificate(place.world)
        assert (await times(world))[0] == early
        ends = moment((await place.state())["expiresAt"])
        before.renewals = window(ends - 2 * HOUR, ends + 900 * DAY)
        place.clock.by = 20 * HOUR
        assert await acme_worker.process_next_certificate(place.world)
        late = (await times(world))[0]
        assert ends - 2 * DAY < late < ends  # in time all the same
        before.renewals = Said({}, 503)
        place.clock.by = 50 * HOUR
        assert await acme_worker.process_next_certificate(place.world)
        assert (await times(world))[0] < ends - 29 * DAY
        assert (await place.state())["acmeState"].startswith("valid, renewed from ")


@pytest.mark.parametrize(
    "refusal", [Said({}, 409), Said.problem("alreadyReplaced", 409), Said.problem("malformed", 400)]
)
async def test_an_order_that_may_not_replace_goes_without(
    world: Environment, root: Client, tmp_path: Path, refusal: Said
) -> None:
    now = datetime.now(UTC)
    async with advised(world, root, tmp_path, window(now + 9 * DAY, now + 10 * DAY)) as (
        place,
        before,
    ):
        one = await place.state()
        before.instead[ORDERS] = [refusal]
        await place.root(RENEW, input={"ids": [one["id"]]})
        assert await acme_worker.process_next_certificate(place.world)
        assert (await place.state())["fingerprintSha256"] != one["fingerprintSha256"]
        assert ["replaces" in order for order in before.orders] == [False, True, False]


async def test_a_limit_is_heeded_and_who_is_concerned_is_said(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    async with advised(world, root, tmp_path, window(now + 9 * DAY, now + 10 * DAY)) as (
        place,
        before,
    ):
        one = await place.state()
        part = {"type": "urn:ietf:params:acme:error:caa", "detail": "Not here."}
        name = {"identifier": {"type": "dns", "value": NAME}}
        limit = Said.problem("rateLimited", 429, subproblems=[part | name])
        before.instead[ORDERS] = [limit]
        await place.root(RENEW, input={"ids": [one["id"]]})
        assert await acme_worker.process_next_certificate(place.world)
        state = (await place.state())["acmeState"]
        assert state.endswith(f"rateLimited: As told.; {NAME}: Not here."), state
        assert len(before.orders) == 2
        ((again,),) = await rows(world, "SELECT acme_next_at FROM certificates")
        assert moment(again) - datetime.now(UTC) > timedelta(minutes=50)


async def test_an_authority_that_is_ours_no_more_is_not_asked(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    async with advised(world, root, tmp_path, window(now + 9 * DAY, now + 10 * DAY)) as (
        place,
        before,
    ):
        renew = (await times(world))[0]
        place.options(acme_directory=place.there.directory)
        assert await acme_worker.process_next_certificate(place.world)
        assert await times(world) == (renew, renew)
        assert before.looks == []
        cert, key = Signer().issue(begin=datetime.now(UTC) - DAY)
        await put(place.root, serverName=NAME, cert=cert, privateKey=key, acme=True)
        asked = "SELECT acme_directory FROM certificates"
        assert await rows(world, asked) == [(None,)]


def test_certificates_are_called_as_the_rfc_does() -> None:
    octets = bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
    signer = Signer()
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    begun = signer.begun(NAME, key)
    plain = begun.sign(signer.key, hashes.SHA256())
    assert acme_client.certificate_id(pem_of(plain)) is None
    object.__setattr__(begun, "_serial_number", 0x87654321)
    by = x509.AuthorityKeyIdentifier(octets, None, None)
    made = begun.add_extension(by, critical=False).sign(signer.key, hashes.SHA256())
    # RFC 9773, section 4.1
    assert acme_client.certificate_id(pem_of(made)) == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"

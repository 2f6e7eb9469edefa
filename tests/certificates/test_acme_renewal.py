"""Renewal at the time that the authority suggests (RFC 9773).

Debian's pebble does not support renewal information. A proxy of the tests adds it and forwards all
other requests.
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
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.operations.platform.certificate_operations import (
    CERTIFICATE_RENEW,
    ONE_DAY,
    SERVER_NAME,
    CertificateSigner,
    certificate_pem,
    set_certificate,
)
from tests.support.servers.acme.acme_platforms import AcmePlatform, run_acme_platform
from tests.support.servers.acme.acme_proxy import (
    NEW_ORDER_PATH,
    AcmeProxy,
    AcmeReply,
    run_acme_proxy,
)
from tests.support.stores.counter_check import load_journal_entries, select_rows

HOUR = timedelta(hours=1)


def renewal_window_response(start: datetime, end: datetime, **headers: str) -> AcmeReply:
    """Return a renewal information response with this suggested window."""
    suggested_window = {"start": f"{start:%Y-%m-%dT%H:%M:%SZ}", "end": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
    return AcmeReply(
        {"suggestedWindow": suggested_window},
        headers={k.replace("_", "-"): v for k, v in headers.items()},
    )


def parse_utc_time(text: Any) -> datetime:
    parsed = text if isinstance(text, datetime) else datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


async def renewal_times(environment: Environment) -> tuple[datetime, datetime]:
    """Return the renewal time and the time of the next step."""
    ((renew_at, next_step_at),) = await select_rows(
        environment, "SELECT acme_renew_at, acme_next_at FROM certificates"
    )
    return parse_utc_time(renew_at), parse_utc_time(next_step_at)


@asynccontextmanager
async def platform_with_renewal_info(
    environment: Environment, root: GraphQLClient, folder: Path, renewal_response: AcmeReply
) -> AsyncIterator[tuple[AcmePlatform, AcmeProxy]]:
    """Run an ACME platform with an issued certificate.

    Its authority returns this renewal information.
    """
    async with (
        run_acme_platform(environment, root, folder) as platform,
        run_acme_proxy(platform.pebble) as proxy,
    ):
        proxy.renewal_reply = renewal_response
        platform.set_options(acme_directory=proxy.directory_url)
        await set_certificate(platform.root, serverName=SERVER_NAME, acme=True)
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await platform.load_certificate())["acmeState"] == "VALID"
        yield platform, proxy


async def test_certificate_is_renewed_in_the_suggested_window_with_replaces(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    start, end = now + 5 * ONE_DAY, now + 7 * ONE_DAY
    async with platform_with_renewal_info(
        environment, root, tmp_path, renewal_window_response(start, end, Retry_After="7200")
    ) as (
        platform,
        proxy,
    ):
        # fetches renewal info
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        renew_at, next_step_at = await renewal_times(environment)
        assert start - HOUR < renew_at < end + HOUR
        assert (
            2 * HOUR - timedelta(minutes=2) < next_step_at - now < 2 * HOUR + timedelta(minutes=9)
        )
        certificate = await platform.load_certificate()
        assert certificate["acmeState"] == "VALID"
        assert parse_utc_time(certificate["acmeNextOrderAt"]) == renew_at
        assert not await acme_worker.order_or_query_next_due_certificate(platform.environment)

        journal_length = len(await load_journal_entries(environment, PLATFORM))
        platform.clock.offset = 3 * HOUR
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await renewal_times(environment))[
            0
        ] == renew_at  # the random time is not chosen again
        # no visible change, no journal entry
        assert len(await load_journal_entries(environment, PLATFORM)) == journal_length
        assert len(proxy.renewal_queries) == 2

        platform.clock.offset = renew_at - datetime.now(UTC) - timedelta(minutes=5)
        # fetches it again
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await platform.load_certificate())["fingerprintSha256"] == certificate[
            "fingerprintSha256"
        ]
        platform.clock.offset = renew_at - datetime.now(UTC) + timedelta(minutes=1)
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        renewed = await platform.load_certificate()
        assert renewed["acmeState"] == "VALID", renewed
        assert renewed["fingerprintSha256"] != certificate["fingerprintSha256"]
        (first, second) = proxy.orders
        assert "replaces" not in first
        assert second["replaces"] == proxy.renewal_queries[0]


async def test_past_window_renews_at_most_once_a_day(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    past = datetime.now(UTC) - 20 * ONE_DAY
    async with platform_with_renewal_info(
        environment, root, tmp_path, renewal_window_response(past, past + ONE_DAY)
    ) as (platform, proxy):
        certificate = await platform.load_certificate()
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        # a new certificate is not renewed for a day
        assert not await acme_worker.order_or_query_next_due_certificate(platform.environment)
        platform.clock.offset = 2 * ONE_DAY
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        renewed = await platform.load_certificate()
        assert renewed["fingerprintSha256"] != certificate["fingerprintSha256"]
        assert len(proxy.orders) == 2


MINUTE = timedelta(minutes=1)
DELAYS_BY_RETRY_AFTER = {  # minimum and maximum
    "0": (timedelta(seconds=50), 2 * MINUTE),
    "-5": (timedelta(seconds=50), 2 * MINUTE),
    "soon": (6 * HOUR - 2 * MINUTE, 6 * HOUR + 2 * MINUTE),
    "99999999999999999999": (6 * HOUR - 2 * MINUTE, 6 * HOUR + 2 * MINUTE),
    "31536000": (ONE_DAY - 2 * MINUTE, ONE_DAY + 2 * MINUTE),
    "Fri, 01 Jan 2100 00:00:00 GMT": (ONE_DAY - 2 * MINUTE, ONE_DAY + 2 * MINUTE),
}


async def test_retry_after_of_renewal_information_is_bounded(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    start = datetime.now(UTC) + 40 * ONE_DAY
    any_response = renewal_window_response(start, start + 2 * ONE_DAY)
    async with platform_with_renewal_info(environment, root, tmp_path, any_response) as (
        platform,
        proxy,
    ):
        for case in each_case(DELAYS_BY_RETRY_AFTER.items()):
            with case as (retry_after, (min_delay, max_delay)):
                proxy.renewal_reply = renewal_window_response(
                    start, start + 2 * ONE_DAY, Retry_After=retry_after
                )
                assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
                delay = (await renewal_times(environment))[1] - platform.clock()
                assert min_delay < delay < max_delay
            platform.clock.offset += ONE_DAY + HOUR  # the next query is due
        assert len(proxy.renewal_queries) == len(DELAYS_BY_RETRY_AFTER)


PAST_TIME = datetime(2020, 1, 1, tzinfo=UTC)
INVALID_RENEWAL_RESPONSES = [
    AcmeReply.from_problem("serverInternal", 500),
    AcmeReply({}, 404),
    AcmeReply(b"no JSON"),
    AcmeReply({}),
    AcmeReply([]),
    AcmeReply({"suggestedWindow": {}}),
    AcmeReply({"suggestedWindow": {"start": "soon", "end": "later"}}),
    renewal_window_response(PAST_TIME + ONE_DAY, PAST_TIME),
    renewal_window_response(PAST_TIME, PAST_TIME),
]


async def test_default_renewal_time_is_kept_without_valid_renewal_info(
    environment: Environment,
    root: GraphQLClient,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first_response = INVALID_RENEWAL_RESPONSES[0]
    async with platform_with_renewal_info(environment, root, tmp_path, first_response) as (
        platform,
        proxy,
    ):
        (renew_at, _), certificate = (
            await renewal_times(environment),
            await platform.load_certificate(),
        )
        expires_at = parse_utc_time(certificate["expiresAt"])
        assert expires_at - 31 * ONE_DAY - HOUR < renew_at < expires_at - 30 * ONE_DAY + HOUR
        for case in each_case(INVALID_RENEWAL_RESPONSES):
            with case as renewal_response:
                caplog.clear()
                proxy.renewal_queries.clear()
                proxy.renewal_reply = renewal_response
                assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
                assert "Could not query the ACME renewal information" in caplog.text
                assert "internal error" not in caplog.text
                new_renew_at, next_step_at = await renewal_times(environment)
                assert new_renew_at == renew_at
                assert timedelta(hours=5) < next_step_at - platform.clock() < timedelta(hours=7)
                assert await platform.load_certificate() == certificate
                assert len(proxy.renewal_queries) == 1
                failure_counts = await select_rows(
                    environment, "SELECT acme_failures FROM certificates"
                )
                assert failure_counts == [(0,)]
            platform.clock.offset += 8 * HOUR  # the next query is due


async def test_earlier_renewal_time_is_kept_if_renewal_info_is_missing(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    async with platform_with_renewal_info(
        environment, root, tmp_path, renewal_window_response(now + 9 * ONE_DAY, now + 10 * ONE_DAY)
    ) as (
        platform,
        proxy,
    ):
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        early_renewal = (await renewal_times(environment))[0]
        proxy.renewal_reply = AcmeReply({}, 503)
        platform.clock.offset = 7 * HOUR
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await renewal_times(environment))[0] == early_renewal
        expires_at = parse_utc_time((await platform.load_certificate())["expiresAt"])
        proxy.renewal_reply = renewal_window_response(
            expires_at - 2 * HOUR, expires_at + 900 * ONE_DAY
        )
        platform.clock.offset = 20 * HOUR
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        late_renewal = (await renewal_times(environment))[0]
        assert expires_at - 2 * ONE_DAY < late_renewal < expires_at  # before it expires
        proxy.renewal_reply = AcmeReply({}, 503)
        platform.clock.offset = 50 * HOUR
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await renewal_times(environment))[0] < expires_at - 29 * ONE_DAY
        assert (await platform.load_certificate())["acmeState"] == "VALID"


async def test_order_is_repeated_without_replaces_if_refused(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    refusals = [
        AcmeReply({}, 409),
        AcmeReply.from_problem("alreadyReplaced", 409),
        AcmeReply.from_problem("malformed", 400),
    ]
    now = datetime.now(UTC)
    async with platform_with_renewal_info(
        environment, root, tmp_path, renewal_window_response(now + 9 * ONE_DAY, now + 10 * ONE_DAY)
    ) as (
        platform,
        proxy,
    ):
        assert ["replaces" in order for order in proxy.orders] == [False]
        for case in each_case(refusals):
            with case as refusal:
                proxy.posts.clear()
                certificate = await platform.load_certificate()
                proxy.replies_by_path[NEW_ORDER_PATH] = [refusal]
                await platform.root(
                    CERTIFICATE_RENEW, input={"certificates": [{"id": certificate["id"]}]}
                )
                assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
                renewed = await platform.load_certificate()
                assert renewed["fingerprintSha256"] != certificate["fingerprintSha256"]
                assert ["replaces" in order for order in proxy.orders] == [True, False]


async def test_rate_limit_is_respected_and_refused_name_is_reported(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    async with platform_with_renewal_info(
        environment, root, tmp_path, renewal_window_response(now + 9 * ONE_DAY, now + 10 * ONE_DAY)
    ) as (
        platform,
        proxy,
    ):
        certificate = await platform.load_certificate()
        subproblem = {"type": "urn:ietf:params:acme:error:caa", "detail": "Not here."}
        identifier = {"identifier": {"type": "dns", "value": SERVER_NAME}}
        limit = AcmeReply.from_problem("rateLimited", 429, subproblems=[subproblem | identifier])
        proxy.replies_by_path[NEW_ORDER_PATH] = [limit]
        await platform.root(CERTIFICATE_RENEW, input={"certificates": [{"id": certificate["id"]}]})
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        failed = await platform.load_certificate()
        assert (failed["acmeState"], failed["acmeError"]) == (
            "FAILED",
            f"rateLimited: As told.; {SERVER_NAME}: Not here.",
        )
        assert len(proxy.orders) == 2
        ((next_at,),) = await select_rows(environment, "SELECT acme_next_at FROM certificates")
        assert parse_utc_time(next_at) - datetime.now(UTC) > timedelta(minutes=50)


async def test_former_authority_is_not_asked_for_renewal_info(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    async with platform_with_renewal_info(
        environment, root, tmp_path, renewal_window_response(now + 9 * ONE_DAY, now + 10 * ONE_DAY)
    ) as (
        platform,
        proxy,
    ):
        renew_at = (await renewal_times(environment))[0]
        platform.set_options(acme_directory=platform.pebble.directory_url)
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert await renewal_times(environment) == (renew_at, renew_at)
        assert proxy.renewal_queries == []
        cert, key = CertificateSigner().issue_certificate(begin=datetime.now(UTC) - ONE_DAY)
        await set_certificate(
            platform.root, serverName=SERVER_NAME, cert=cert, privateKey=key, acme=True
        )
        query = "SELECT acme_directory FROM certificates"
        assert await select_rows(environment, query) == [(None,)]


def test_renewal_id_matches_example_of_rfc_9773() -> None:
    key_identifier_bytes = bytes.fromhex("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
    signer = CertificateSigner()
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    builder = signer.certificate_builder(SERVER_NAME, key)
    without_key_identifier = builder.sign(signer.key, hashes.SHA256())
    assert acme_client.certificate_renewal_id(certificate_pem(without_key_identifier)) is None
    object.__setattr__(builder, "_serial_number", 0x87654321)
    key_identifier = x509.AuthorityKeyIdentifier(key_identifier_bytes, None, None)
    with_key_identifier = builder.add_extension(key_identifier, critical=False).sign(
        signer.key, hashes.SHA256()
    )
    # RFC 9773, section 4.1
    assert (
        acme_client.certificate_renewal_id(certificate_pem(with_key_identifier))
        == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
    )

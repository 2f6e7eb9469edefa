"""Certificates of several names: each name is validated, and all are issued or none."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mail.tls.acme_client import AcmeError
from models.runtime.environment import Environment
from resolvers.certificates import acme_dns_checks, acme_worker, certificate_reload
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.mail_servers.smtp_and_dns_servers import FakeDnsServer, run_dns_server
from tests.support.operations.platform.certificate_operations import (
    CERTIFICATE_BEGIN,
    CERTIFICATE_QUERY,
    CERTIFICATE_RENEW,
    ONE_DAY,
    SERVER_NAME,
    CertificateSigner,
    set_certificate,
)
from tests.support.schema.error_paths import field_path, item_index
from tests.support.servers.acme.acme_platforms import (
    configure_unreachable_authority,
    run_acme_platform,
)
from tests.support.stores.counter_check import select_rows
from tests.support.time_limits import HANG_SECONDS

OTHER_NAMES = ["imap.example.org", "xn--bcher-kva.example", "mail.example.net"]
RECORDS: dict[Any, list[str]] = {(name, "A"): ["127.0.0.1"] for name in [SERVER_NAME, *OTHER_NAMES]}


async def test_all_names_are_validated_served_and_kept_on_renewal(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_acme_platform(environment, root, tmp_path, RECORDS) as platform:
        acme_names = [
            "IMAP.example.org.",
            "bücher.example",
            SERVER_NAME,
            "imap.example.org",
            OTHER_NAMES[2],
        ]
        answer = await set_certificate(
            platform.root, serverName=SERVER_NAME, acme=True, acmeNames=acme_names
        )
        assert (answer["errors"], answer["certificate"]["acmeNames"]) == ([], OTHER_NAMES)
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        certificate = await platform.load_certificate()
        assert certificate["acmeState"] == "VALID", certificate
        assert sorted(certificate["altNames"]) == sorted([SERVER_NAME, *OTHER_NAMES])
        assert await select_rows(environment, "SELECT * FROM acme_challenges") == []
        keyring = certificate_reload.new_empty_keyring(platform.environment)
        await certificate_reload.update_keyring_from_database(platform.environment, keyring)
        certificates_by_name = [
            keyring.certificates_for_name(name) for name in [SERVER_NAME, *OTHER_NAMES]
        ]
        assert [len(name_certificates) for name_certificates in certificates_by_name] == [1] * 4
        assert keyring.certificates_for_name("other.example.org") == []

        await set_certificate(
            platform.root, serverName=SERVER_NAME, acme=True, description="Of mail"
        )
        # the renewal schedule is unchanged
        assert not await acme_worker.order_or_query_next_due_certificate(platform.environment)
        expires_at = datetime.fromisoformat(certificate["expiresAt"])
        platform.clock.offset = expires_at - datetime.now(UTC) - 29 * ONE_DAY
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        renewed = await platform.load_certificate()
        assert renewed["acmeState"] == "VALID", renewed
        assert renewed["fingerprintSha256"] != certificate["fingerprintSha256"]
        assert sorted(renewed["altNames"]) == sorted([SERVER_NAME, *OTHER_NAMES])


async def test_added_name_is_ordered_at_once_and_removed_name_on_renewal(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_acme_platform(environment, root, tmp_path, RECORDS) as platform:
        await set_certificate(platform.root, serverName=SERVER_NAME, acme=True)
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        added = await set_certificate(
            platform.root, serverName=SERVER_NAME, acme=True, acmeNames=OTHER_NAMES[:1]
        )
        assert added["certificate"]["acmeState"] == "WAITING"
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        certificate = await platform.load_certificate()
        assert sorted(certificate["altNames"]) == sorted([SERVER_NAME, OTHER_NAMES[0]])
        removed = await set_certificate(
            platform.root, serverName=SERVER_NAME, acme=True, acmeNames=[]
        )
        assert removed["certificate"]["acmeState"] == "VALID"
        assert not await acme_worker.order_or_query_next_due_certificate(platform.environment)
        await platform.root(CERTIFICATE_RENEW, input={"certificates": [{"id": certificate["id"]}]})
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await platform.load_certificate())["altNames"] == [SERVER_NAME]


async def test_unvalidated_name_is_reported_and_no_certificate_is_issued(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    records = RECORDS | {(OTHER_NAMES[1], "A"): ["127.0.0.9"], (OTHER_NAMES[2], "A"): ["127.0.0.9"]}
    async with run_acme_platform(environment, root, tmp_path, records) as platform:
        await set_certificate(
            platform.root, serverName=SERVER_NAME, acme=True, acmeNames=OTHER_NAMES
        )
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        certificate = await platform.load_certificate()
        assert certificate["acmeState"] == "FAILED", certificate
        reported = [
            certificate["acmeError"].startswith(f"{name}: connection: ") for name in OTHER_NAMES[1:]
        ]
        assert any(reported), certificate
        assert (certificate["altNames"], certificate["expiresAt"]) == ([], None)
        assert await select_rows(environment, "SELECT * FROM acme_challenges") == []


async def test_name_refused_by_the_authority_is_reported(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_acme_platform(
        environment, root, tmp_path, RECORDS, domainBlocklist=[OTHER_NAMES[0]]
    ) as platform:
        await set_certificate(
            platform.root, serverName=SERVER_NAME, acme=True, acmeNames=OTHER_NAMES[:1]
        )
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        failed = await platform.load_certificate()
        assert failed["acmeState"] == "FAILED"
        assert "rejectedIdentifier: " in failed["acmeError"]
        assert OTHER_NAMES[0] in failed["acmeError"]


async def test_names_without_dns_address_are_reported(
    root: GraphQLClient, environment: Environment
) -> None:
    await set_certificate(root, serverName=SERVER_NAME, acme=True, acmeNames=OTHER_NAMES)
    known_records = {key: value for key, value in RECORDS.items() if key[0] not in OTHER_NAMES[1:]}
    async with run_dns_server(FakeDnsServer(known_records)) as dns:
        assert await acme_worker.order_or_query_next_due_certificate(
            configure_unreachable_authority(environment, dns.port)
        )
    failed = (await root(CERTIFICATE_QUERY, by={"serverName": SERVER_NAME}))["certificate"]
    reason = "DNS has no A or AAAA record of the name: publish one."
    assert (failed["acmeState"], failed["acmeError"]) == (
        "FAILED",
        f"{OTHER_NAMES[1]}: {reason} Also affected: {OTHER_NAMES[2]}.",
    )


async def test_failure_reason_is_reported_within_bounds_for_many_names(
    root: GraphQLClient, environment: Environment
) -> None:
    acme_names = [f"n{nth}.example.org" for nth in range(99)]
    await set_certificate(root, serverName=SERVER_NAME, acme=True, acmeNames=acme_names)
    async with run_dns_server(FakeDnsServer({})) as dns:
        assert await acme_worker.order_or_query_next_due_certificate(
            configure_unreachable_authority(environment, dns.port)
        )
    failed = (await root(CERTIFICATE_QUERY, by={"serverName": SERVER_NAME}))["certificate"]
    assert failed["acmeState"] == "FAILED"
    assert failed["acmeError"].startswith(
        f"{SERVER_NAME}: DNS has no A or AAAA record of the name: publish one. "
        "Also affected: n0.exam"
    )
    assert len(failed["acmeError"]) <= 300


async def test_certificate_with_hundred_names_is_issued(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    names = [f"n{nth}.example.org" for nth in range(99)]
    records = {(name, "A"): ["127.0.0.1"] for name in [SERVER_NAME, *names]}
    async with run_acme_platform(environment, root, tmp_path, records) as platform:
        await set_certificate(platform.root, serverName=SERVER_NAME, acme=True, acmeNames=names)
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        certificate = await platform.load_certificate()
        assert certificate["acmeState"] == "VALID", certificate
        assert set(certificate["altNames"]) == {SERVER_NAME, *names}


async def test_invalid_acme_names_are_refused(
    root: GraphQLClient, environment: Environment
) -> None:
    too_many_names = [f"n{nth}.example.org" for nth in range(100)]
    hundred_names = [SERVER_NAME, *(f"n{nth}.example.org" for nth in range(99))]
    for names, index, rule in (
        (["a.example", "*.example.org"], 1, "WILDCARD"),
        (["localhost"], 0, "DOMAIN"),
        (["a.example", "b.example", "a b"], 2, "DOMAIN"),
        (["192.0.2.1"], 0, "DOMAIN"),
        ([""], 0, "DOMAIN"),
        (["a.example\r\nb.example"], 0, "DOMAIN"),
        (["x" * 300], 0, "DOMAIN"),
        (too_many_names, None, "MAX"),
        ([*hundred_names, "a.example"], None, "MAX"),
    ):
        answer = await set_certificate(root, serverName=SERVER_NAME, acme=True, acmeNames=names)
        (error,) = answer["errors"]
        actual = error["code"], field_path(error), item_index(error), error["constraint"]
        assert actual == ("VALIDATION", ["acmeNames"], index, rule), names
    cert, key = CertificateSigner().issue_certificate()
    certificate_input = {"serverName": SERVER_NAME, "cert": cert, "privateKey": key}
    (error,) = (await set_certificate(root, **certificate_input, acmeNames=["a.example"]))["errors"]
    assert (error["path"], error["constraint"]) == (["acmeNames"], "ACME_ONLY")
    assert await select_rows(environment, "SELECT * FROM certificates") == []
    assert (
        len(
            (
                await set_certificate(
                    root, serverName=SERVER_NAME, acme=True, acmeNames=hundred_names
                )
            )["errors"]
        )
        == 0
    )


async def test_uploaded_certificate_is_replaced_at_once_if_a_name_is_missing(
    root: GraphQLClient,
) -> None:
    cases: list[tuple[list[str], bool]] = [
        ([SERVER_NAME, "a.example.org"], False),
        (["*.example.org"], False),
        ([SERVER_NAME], True),
        (["a.example.org"], True),
    ]
    for case in each_case(cases):
        with case as (certificate_names, is_pending):
            cert, key = CertificateSigner().issue_certificate(
                certificate_names, begin=CERTIFICATE_BEGIN
            )
            certificate_input = {
                "serverName": SERVER_NAME,
                "cert": cert,
                "privateKey": key,
                "acme": True,
            }
            certificate = (
                await set_certificate(root, **certificate_input, acmeNames=["a.example.org"])
            )["certificate"]
            assert (certificate["acmeState"] == "TERMS_NOT_AGREED") is is_pending
            answer = await set_certificate(root, serverName=SERVER_NAME, acme=False)
            assert (answer["certificate"]["acme"], answer["certificate"]["acmeNames"]) == (
                False,
                [],
            )


async def test_change_of_names_cancels_the_running_order(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_acme_platform(environment, root, tmp_path, RECORDS) as platform:
        await set_certificate(platform.root, serverName=SERVER_NAME, acme=True)
        order = asyncio.create_task(
            acme_worker.order_or_query_next_due_certificate(platform.environment)
        )
        async with asyncio.timeout(HANG_SECONDS):
            while not await select_rows(  # noqa: ASYNC110
                environment, "SELECT lease FROM certificates WHERE lease IS NOT NULL"
            ):
                await asyncio.sleep(0.01)
        await set_certificate(
            platform.root, serverName=SERVER_NAME, acme=True, acmeNames=OTHER_NAMES[:1]
        )
        assert await order
        assert (await platform.load_certificate())["expiresAt"] is None
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert sorted((await platform.load_certificate())["altNames"]) == sorted(
            [SERVER_NAME, OTHER_NAMES[0]]
        )


async def test_caa_records_are_checked_for_each_name(
    root: GraphQLClient, environment: Environment
) -> None:
    await set_certificate(root, serverName=SERVER_NAME, acme=True, acmeNames=OTHER_NAMES)
    caa = {("example.net", "CAA"): ['0 issue "other.example"']}
    async with run_dns_server(FakeDnsServer(RECORDS | caa)) as dns:
        acme_environment = configure_unreachable_authority(environment, dns.port)

        async def require_caa(name: str) -> None:
            await acme_dns_checks.require_caa_allows(acme_environment, name, ("ours.example",))

        with pytest.raises(
            AcmeError, match=r"mail\.example\.net: The CAA record of example\.net does"
        ):
            # pebble has no names
            await acme_dns_checks.check_each_name([SERVER_NAME, *OTHER_NAMES], require_caa)

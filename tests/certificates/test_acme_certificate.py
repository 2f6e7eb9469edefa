"""Certificates from a real ACME server that validates the challenges itself."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from bench.servers.ports import free_port
from mail.tls import acme_client
from models.certificates import AcmeChallenge
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox
from resolvers.certificates import (
    acme_accounts,
    acme_dns_checks,
    acme_worker,
    certificate_reload,
    stored_certificates,
)
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.mail_servers.smtp_and_dns_servers import FakeDnsServer, run_dns_server
from tests.support.operations.platform.certificate_operations import (
    CERTIFICATE_DELETE,
    CERTIFICATE_QUERY,
    CERTIFICATE_RENEW,
    SERVER_NAME,
    CertificateSigner,
    set_certificate,
)
from tests.support.servers.acme.acme_platforms import (
    RECORDS,
    configure_unreachable_authority,
    run_acme_platform,
)
from tests.support.servers.acme.acme_proxy import NEW_ORDER_PATH, AcmeReply, run_acme_proxy
from tests.support.stores.counter_check import select_rows
from tests.support.time_limits import HANG_SECONDS


async def test_certificate_is_issued_served_and_renewed_with_its_key(
    environment: Environment, root: GraphQLClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with run_acme_platform(environment, root, tmp_path) as platform:
        answer = await set_certificate(platform.root, serverName=SERVER_NAME, acme=True)
        assert (answer["errors"], answer["certificate"]["acmeState"]) == (
            [],
            "WAITING",
        )
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert not await acme_worker.order_or_query_next_due_certificate(platform.environment)
        certificate = await platform.load_certificate()
        assert (certificate["acmeState"], certificate["acmeError"]) == ("VALID", None)
        assert certificate["altNames"] == [SERVER_NAME]
        assert "Pebble" in certificate["issuer"]
        keyring = certificate_reload.new_empty_keyring(platform.environment)
        await certificate_reload.update_keyring_from_database(platform.environment, keyring)
        assert keyring.context_for_name_or_default(SERVER_NAME) is not None
        assert await select_rows(environment, "SELECT * FROM acme_challenges") == []
        query = "SELECT chain, private_key, spki, id FROM certificates"
        ((chain, encrypted_key, spki, certificate_id),) = await select_rows(environment, query)
        assert len(x509.load_pem_x509_certificates(chain.encode())) > 1
        pem = platform.environment.secret_box.decrypt(
            encrypted_key, stored_certificates.encryption_context(certificate_id)
        )
        assert pem.splitlines()[3] not in caplog.text
        (account,) = await select_rows(environment, "SELECT directory, url FROM acme_accounts")
        assert account[1].startswith(platform.pebble.directory_url.removesuffix("dir"))

        renewal_due_at = datetime.fromisoformat(certificate["expiresAt"]) - timedelta(days=30)
        next_order_at = datetime.fromisoformat(certificate["acmeNextOrderAt"])
        assert timedelta() <= renewal_due_at - next_order_at <= timedelta(days=1)
        platform.clock.offset = renewal_due_at - datetime.now(UTC) - timedelta(days=2)
        assert not await acme_worker.order_or_query_next_due_certificate(platform.environment)
        platform.clock.offset = renewal_due_at - datetime.now(UTC) + timedelta(minutes=1)
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        renewed = await platform.load_certificate()
        assert renewed["acmeState"] == "VALID", renewed
        assert renewed["fingerprintSha256"] != certificate["fingerprintSha256"]
        (renewed_row,) = await select_rows(environment, "SELECT spki, version FROM certificates")
        assert renewed_row == (spki, 2)
        assert await select_rows(environment, "SELECT directory, url FROM acme_accounts") == [
            account
        ]
        assert "PRIVATE KEY" not in caplog.text


async def test_renewal_by_admin_is_immediate_and_keeps_uploaded_key(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_acme_platform(environment, root, tmp_path) as platform:
        cert, key = CertificateSigner().issue_certificate(
            begin=datetime.now(UTC) - timedelta(days=1)
        )
        certificate_input = {
            "serverName": SERVER_NAME,
            "cert": cert,
            "privateKey": key,
            "acme": True,
        }
        certificate = (await set_certificate(platform.root, **certificate_input))["certificate"]
        assert not await acme_worker.order_or_query_next_due_certificate(platform.environment)
        (row_before,) = await select_rows(environment, "SELECT spki FROM certificates")
        await platform.root(CERTIFICATE_RENEW, input={"certificates": [{"id": certificate["id"]}]})
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        renewed = await platform.load_certificate()
        assert "Pebble" in renewed["issuer"], renewed
        assert await select_rows(environment, "SELECT spki FROM certificates") == [row_before]


async def test_failed_order_is_reported_and_retried_with_growing_delay(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_acme_platform(environment, root, tmp_path, is_reachable=False) as platform:
        certificate = (await set_certificate(platform.root, serverName=SERVER_NAME, acme=True))[
            "certificate"
        ]
        delays = []
        for _ in range(2):
            assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
            failed = await platform.load_certificate()
            assert failed["acmeState"] == "FAILED"
            assert failed["acmeError"].startswith(f"{SERVER_NAME}: connection: ")
            assert not await acme_worker.order_or_query_next_due_certificate(platform.environment)
            (row,) = await select_rows(
                environment, "SELECT acme_next_at, acme_failures FROM certificates"
            )
            assert await select_rows(environment, "SELECT * FROM acme_challenges") == []
            next_attempt_at = (
                row[0] if isinstance(row[0], datetime) else datetime.fromisoformat(row[0])
            )
            next_attempt_at = (
                next_attempt_at if next_attempt_at.tzinfo else next_attempt_at.replace(tzinfo=UTC)
            )
            assert abs(
                datetime.fromisoformat(failed["acmeNextOrderAt"]) - next_attempt_at
            ) < timedelta(seconds=1)
            delays.append((next_attempt_at - platform.clock()).total_seconds())
            platform.clock.offset += timedelta(seconds=delays[-1] + 1)
        assert 500 < delays[0] < 700
        assert 1000 < delays[1] < 1400
        assert row[1] == 2
        renewal = await platform.root(
            CERTIFICATE_RENEW, input={"certificates": [{"id": certificate["id"]}]}
        )
        (renewed,) = renewal["certificateRenew"]["certificates"]
        assert (renewed["acmeState"], renewed["acmeError"]) == ("WAITING", None)
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        (row,) = await select_rows(environment, "SELECT acme_failures FROM certificates")
        assert row == (1,)


async def test_account_unknown_to_the_authority_is_created_again(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_acme_platform(environment, root, tmp_path) as platform:
        certificate = (await set_certificate(platform.root, serverName=SERVER_NAME, acme=True))[
            "certificate"
        ]
        base = platform.environment.options.acme_directory.removesuffix("/dir")
        account = await acme_accounts.load_or_create_account(
            platform.environment, platform.environment.options.acme_directory
        )
        await acme_accounts.store_account_url(
            platform.environment, account.id, f"{base}/my-account/none"
        )
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        failed = await platform.load_certificate()
        assert failed["acmeState"] == "FAILED"
        assert failed["acmeError"].startswith("accountDoesNotExist: ")
        await platform.root(CERTIFICATE_RENEW, input={"certificates": [{"id": certificate["id"]}]})
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await platform.load_certificate())["acmeState"] == "VALID"


async def test_state_follows_the_steps_of_the_order(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with (
        run_acme_platform(environment, root, tmp_path) as platform,
        run_acme_proxy(platform.pebble) as proxy,
    ):
        platform.set_options(acme_directory=proxy.directory_url)
        certificate = (await set_certificate(platform.root, serverName=SERVER_NAME, acme=True))[
            "certificate"
        ]
        seen_states = [certificate["acmeState"]]
        assert certificate["acmeNextOrderAt"] is not None

        async def load_state(_path: str) -> None:
            ((state,),) = await select_rows(environment, "SELECT acme_state FROM certificates")
            if state != seen_states[-1]:
                seen_states.append(state)
                shown = await platform.load_certificate()
                assert (shown["acmeState"], shown["acmeNextOrderAt"]) == (state, None)

        proxy.before_each_request = load_state
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        seen_states.append((await platform.load_certificate())["acmeState"])
        assert seen_states == ["WAITING", "ORDERING", "VALIDATING", "ISSUING", "VALID"]


async def test_two_workers_order_once_and_deleted_certificate_stays_deleted(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_acme_platform(environment, root, tmp_path) as platform:
        certificate = (await set_certificate(platform.root, serverName=SERVER_NAME, acme=True))[
            "certificate"
        ]
        results = asyncio.gather(
            acme_worker.order_or_query_next_due_certificate(platform.environment),
            acme_worker.order_or_query_next_due_certificate(platform.environment),
        )
        assert sorted(await results) == [False, True]
        assert (await platform.load_certificate())["acmeState"] == "VALID"
        await platform.root(CERTIFICATE_RENEW, input={"certificates": [{"id": certificate["id"]}]})
        order = asyncio.create_task(
            acme_worker.order_or_query_next_due_certificate(platform.environment)
        )
        async with asyncio.timeout(HANG_SECONDS):
            while not await select_rows(  # noqa: ASYNC110
                environment, "SELECT lease FROM certificates WHERE lease IS NOT NULL"
            ):
                await asyncio.sleep(0.01)
        await platform.root(CERTIFICATE_DELETE, input={"certificates": [{"id": certificate["id"]}]})
        assert await order
        assert await select_rows(environment, "SELECT * FROM certificates") == []
        assert await select_rows(environment, "SELECT * FROM acme_challenges") == []


async def test_stopped_worker_releases_its_lease(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_acme_platform(environment, root, tmp_path) as platform:
        await set_certificate(platform.root, serverName=SERVER_NAME, acme=True)
        worker = asyncio.create_task(
            acme_worker.order_and_renew_certificates_forever(platform.environment)
        )
        lease_query = "SELECT lease FROM certificates WHERE lease IS NOT NULL"
        async with asyncio.timeout(HANG_SECONDS):
            while not await select_rows(environment, lease_query):  # noqa: ASYNC110 - rows have no event
                await asyncio.sleep(0.01)
        worker.cancel()
        await asyncio.wait([worker])
        assert await select_rows(environment, lease_query) == []
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await platform.load_certificate())["acmeState"] == "VALID"


async def test_no_order_before_the_terms_are_agreed_to(
    root: GraphQLClient, environment: Environment
) -> None:
    await set_certificate(root, serverName=SERVER_NAME, acme=True)
    assert not await acme_worker.order_or_query_next_due_certificate(environment)
    await root(
        'mutation { settingSet(input: {key: "acme.termsAgreed", value: true}) { replayed } }'
    )
    async with run_dns_server(FakeDnsServer({})) as dns:
        acme_environment = configure_unreachable_authority(environment, dns.port)
        assert await acme_worker.order_or_query_next_due_certificate(acme_environment)
    failed = (await root(CERTIFICATE_QUERY, by={"serverName": SERVER_NAME}))["certificate"]
    assert (failed["acmeState"], failed["acmeError"]) == (
        "FAILED",
        f"{SERVER_NAME}: DNS has no A or AAAA record of the name: publish one.",
    )


async def test_unreachable_acme_server_is_reported(
    root: GraphQLClient, environment: Environment
) -> None:
    await set_certificate(root, serverName=SERVER_NAME, acme=True)
    async with run_dns_server(FakeDnsServer(dict(RECORDS))) as dns:
        assert await acme_worker.order_or_query_next_due_certificate(
            configure_unreachable_authority(environment, dns.port)
        )
    failed = (await root(CERTIFICATE_QUERY, by={"serverName": SERVER_NAME}))["certificate"]
    assert failed["acmeState"] == "FAILED"
    assert "The ACME server does not respond: " in failed["acmeError"]


async def test_outage_of_the_acme_server_is_no_failed_order(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    """The retry delay does not grow, and the order succeeds soon after the outage."""
    async with (
        run_acme_platform(environment, root, tmp_path) as platform,
        run_acme_proxy(platform.pebble) as proxy,
    ):
        await set_certificate(platform.root, serverName=SERVER_NAME, acme=True)
        html = {"Content-Type": "text/html"}
        failing_replies = [
            ("/dir", AcmeReply(b"<h1>Maintenance</h1>", 503, html)),
            ("/dir", AcmeReply({"message": "no upstream"}, 502)),
            (NEW_ORDER_PATH, AcmeReply.from_problem("serverInternal", 500)),
        ]
        authorities = [f"https://localhost:{free_port()}/dir", *[proxy.directory_url] * 3]
        for path, reply in failing_replies:
            proxy.replies_by_path.setdefault(path, []).append(reply)
        for directory in authorities:
            platform.set_options(acme_directory=directory)
            assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
            failed = await platform.load_certificate()
            assert (failed["acmeState"], bool(failed["acmeError"])) == ("FAILED", True), failed
            next_order_at = datetime.fromisoformat(failed["acmeNextOrderAt"])
            assert 500 < (next_order_at - platform.clock()).total_seconds() < 700, failed
            platform.clock.offset += timedelta(minutes=12)
        assert await select_rows(environment, "SELECT acme_failures FROM certificates") == [(0,)]
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await platform.load_certificate())["acmeState"] == "VALID"


async def test_caa_records_are_checked_before_the_order(environment: Environment) -> None:
    cases: list[tuple[Mapping[Any, list[str]], bool]] = [
        ({}, True),
        ({("example.org", "CAA"): ['0 issue "ours.example"']}, True),
        ({("example.org", "CAA"): ['0 issue "x.example"', '0 issue "ours.example; a=b"']}, True),
        ({("example.org", "CAA"): ['0 issue "other.example"']}, False),
        ({("example.org", "CAA"): ['0 issue ";"']}, False),
        ({("example.org", "CAA"): ['0 iodef "mailto:a@b.example"']}, True),
        (
            {
                (SERVER_NAME, "CAA"): ['0 issue "ours.example"'],
                ("example.org", "CAA"): ['0 issue "other.example"'],
            },
            True,
        ),
    ]
    for case in each_case(cases):
        with case as (records, allowed):
            async with run_dns_server(FakeDnsServer(dict(RECORDS) | dict(records))) as dns:
                acme_environment = configure_unreachable_authority(environment, dns.port)
                if allowed:
                    await acme_dns_checks.require_caa_allows(
                        acme_environment, SERVER_NAME, ("ours.example",)
                    )  # pebble has none
                else:
                    with pytest.raises(
                        acme_client.AcmeError,
                        match=r"The CAA record of example\.org does not allow",
                    ):
                        await acme_dns_checks.require_caa_allows(
                            acme_environment, SERVER_NAME, ("ours.example",)
                        )


async def test_only_valid_challenge_tokens_are_answered_without_sign_in(
    root: GraphQLClient, environment: Environment
) -> None:
    certificate = (await set_certificate(root, serverName=SERVER_NAME, acme=True))["certificate"]
    assert certificate["acme"]
    ((certificate_id,),) = await select_rows(environment, "SELECT id FROM certificates")
    expires_at = environment.now() + timedelta(hours=1)
    async with environment.write_session() as session:
        for token, token_expires_at in (("a-_1", expires_at), ("old", environment.now())):
            session.add(
                AcmeChallenge(
                    token=token,
                    certificate_id=certificate_id,
                    answer=f"{token}.x",
                    expires_at=token_expires_at,
                )
            )
    base = "/.well-known/acme-challenge/"
    response = await root.http.get(f"{base}a-_1")
    assert (response.status_code, response.text) == (200, "a-_1.x")
    for token in ("old", "b", "a-_1/", "", "%00", "a" * 300, "..%2fmetrics", "ä"):
        assert (await root.http.get(base + token)).status_code == 404, token
    assert (await root.http.post(f"{base}a-_1")).status_code == 405


async def test_undecryptable_account_key_is_reported(environment: Environment) -> None:
    directory = "https://localhost/dir"
    await acme_accounts.load_or_create_account(environment, directory)
    other_environment = replace(environment, secret_box=SecretBox.with_new_key())
    with pytest.raises(acme_client.AcmeError, match="restore the key file"):
        await acme_accounts.load_or_create_account(other_environment, directory)

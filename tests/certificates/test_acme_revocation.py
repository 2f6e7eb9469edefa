"""Certificates that are revoked before they are deleted."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from sqlalchemy import update
from sqlmodel import col

from bench.servers.ports import free_port
from models.certificates import Certificate
from models.runtime.environment import Environment
from resolvers.certificates import acme_worker
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.operations.id_references import id_refs
from tests.support.operations.platform.certificate_operations import (
    CERTIFICATE_DELETE,
    ONE_DAY,
    SERVER_NAME,
    CertificateSigner,
    set_certificate,
    store_certificate,
)
from tests.support.schema.error_paths import field_path, item_index
from tests.support.servers.acme.acme_platforms import AcmePlatform, run_acme_platform
from tests.support.servers.acme.acme_proxy import REVOKE_PATH, AcmeProxy, AcmeReply, run_acme_proxy
from tests.support.stores.counter_check import select_rows
from tests.support.time_limits import HANG_SECONDS

OTHER_NAME = "imap.example.org"
RECORDS: dict[Any, list[str]] = {(name, "A"): ["127.0.0.1"] for name in (SERVER_NAME, OTHER_NAME)}
REASON_CODES = [
    ("UNSPECIFIED", 0),
    ("KEY_COMPROMISE", 1),
    ("AFFILIATION_CHANGED", 3),
    ("SUPERSEDED", 4),
    ("CESSATION_OF_OPERATION", 5),
]


async def delete_certificates(client: GraphQLClient, ids: list[str], **extra: Any) -> Any:
    """Delete certificates and return the payload of certificateDelete."""
    return (await client(CERTIFICATE_DELETE, input={"certificates": id_refs(ids), **extra}))[
        "certificateDelete"
    ]


async def issue_certificate(platform: AcmePlatform, name: str) -> tuple[str, x509.Certificate]:
    """Order a certificate, and return its id and the issued certificate."""
    await set_certificate(platform.root, serverName=name, acme=True)
    assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
    query = f"SELECT chain FROM certificates WHERE server_name = '{name}'"  # noqa: S608
    ((chain,),) = await select_rows(platform.environment, query)
    certificate_id = (await platform.load_certificate(name))["id"]
    return certificate_id, x509.load_pem_x509_certificate(chain.encode())


@asynccontextmanager
async def platform_with_certificates(
    environment: Environment, root: GraphQLClient, folder: Path, names: list[str]
) -> AsyncIterator[tuple[AcmePlatform, AcmeProxy, list[str], list[x509.Certificate]]]:
    """Run an ACME platform with an issued certificate for each name."""
    async with (
        run_acme_platform(environment, root, folder, RECORDS) as platform,
        run_acme_proxy(platform.pebble) as proxy,
    ):
        platform.set_options(acme_directory=proxy.directory_url)
        issued = [await issue_certificate(platform, name) for name in names]
        yield (
            platform,
            proxy,
            [one for one, _ in issued],
            [certificate for _, certificate in issued],
        )


async def status_at_pebble(
    platform: AcmePlatform, certificate: x509.Certificate
) -> tuple[str, int | None]:
    """Return the status and the revocation reason of a certificate at pebble."""
    tls_context = ssl.create_default_context(cafile=str(platform.pebble.ca))
    base = f"https://localhost:{platform.pebble.management_port}/cert-status-by-serial"
    async with httpx.AsyncClient(verify=tls_context, timeout=HANG_SECONDS) as http:
        response = (await http.get(f"{base}/{certificate.serial_number:x}")).json()
    return response["Status"], response.get("Reason")


async def test_certificate_is_revoked_with_reason_and_deleted(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with platform_with_certificates(environment, root, tmp_path, []) as (
        platform,
        proxy,
        _,
        _,
    ):
        for case in each_case(REASON_CODES):
            with case as (reason, code):
                certificate_id, certificate = await issue_certificate(platform, SERVER_NAME)
                proxy.posts.clear()
                assert (await status_at_pebble(platform, certificate))[0] == "Valid"
                dry_run = await delete_certificates(
                    platform.root, [certificate_id], revoke=reason, options={"validateOnly": True}
                )
                assert dry_run["errors"] == []
                assert (await status_at_pebble(platform, certificate))[0] == "Valid"
                answer = await delete_certificates(platform.root, [certificate_id], revoke=reason)
                ids = [certificate_id]
                assert answer == {"deletedIds": ids, "revokedIds": ids, "errors": []}
                assert await status_at_pebble(platform, certificate) == ("Revoked", code)
                assert [path for path, _ in proxy.posts if path == REVOKE_PATH] == [REVOKE_PATH]
                assert await select_rows(environment, "SELECT * FROM certificates") == []
                query = "SELECT mutation, after FROM audit_log ORDER BY id"
                log = await select_rows(environment, query)
                assert [mutation for mutation, _ in log[-2:]] == ["certificateDelete"] * 2
                assert reason in str(log[-2][1])  # the revocation, which precedes the deletion


async def test_delete_without_reason_does_not_revoke(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with platform_with_certificates(environment, root, tmp_path, [SERVER_NAME]) as (
        platform,
        _proxy,
        ids,
        (certificate,),
    ):
        answer = await delete_certificates(platform.root, ids, revoke=None)
        assert answer == {"deletedIds": ids, "revokedIds": [], "errors": []}
        assert (await status_at_pebble(platform, certificate))[0] == "Valid"


async def test_failed_revocation_deletes_nothing(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    responses = [
        (AcmeReply.from_problem("badRevocationReason", 400), "VALIDATION", "REVOCATION_REASON"),
        (AcmeReply.from_problem("unauthorized", 403), "UNAVAILABLE", "acme"),
        (AcmeReply.from_problem("serverInternal", 500), "UNAVAILABLE", "acme"),
        (AcmeReply(b"", 502), "UNAVAILABLE", "acme"),
    ]
    async with platform_with_certificates(
        environment, root, tmp_path, [SERVER_NAME, OTHER_NAME]
    ) as (
        platform,
        proxy,
        ids,
        certificates,
    ):
        state = await platform.load_certificate(OTHER_NAME)
        for case in each_case(responses):
            with case as (revocation_response, code, detail):
                proxy.replies_by_path[REVOKE_PATH] = [revocation_response]
                answer = await delete_certificates(platform.root, ids, revoke="SUPERSEDED")
                (error,) = answer["errors"]
                assert (error["code"], error.get("constraint") or error["component"]) == (
                    code,
                    detail,
                )
                assert error["message"].startswith(
                    f"{SERVER_NAME} was not revoked, and no certificate was deleted: "
                )
                assert (answer["deletedIds"], answer["revokedIds"]) == ([], [])
                assert [
                    (await status_at_pebble(platform, certificate))[0]
                    for certificate in certificates
                ] == ["Valid", "Valid"]
                assert await platform.load_certificate(OTHER_NAME) == state


@pytest.mark.parametrize("options", [{}, {"idempotencyKey": "k"}])
async def test_partial_revocation_is_reported_and_can_be_retried(
    environment: Environment, root: GraphQLClient, tmp_path: Path, options: dict[str, str]
) -> None:
    async with platform_with_certificates(
        environment, root, tmp_path, [SERVER_NAME, OTHER_NAME]
    ) as (
        platform,
        _proxy,
        ids,
        certificates,
    ):
        update_other = update(Certificate).where(col(Certificate.server_name) == OTHER_NAME)
        async with environment.write_session() as session:  # its authority does not exist any more
            set_directory = update_other.values(
                acme_directory=f"https://localhost:{free_port()}/dir"
            )
            await (await session.connection()).execute(set_directory)
        answer = await delete_certificates(platform.root, ids, revoke="SUPERSEDED", options=options)
        (error,) = answer["errors"]
        assert error["code"] == "UNAVAILABLE"
        assert error["message"].startswith(
            f"{OTHER_NAME} was not revoked, and no certificate was deleted: "
        )
        assert error["message"].endswith(f" Already revoked: {SERVER_NAME}.")
        assert (await status_at_pebble(platform, certificates[0]))[0] == "Revoked"
        revoked = await platform.load_certificate()
        assert (revoked["acmeState"], revoked["acmeError"]) == ("REVOKED", None)
        assert revoked["acmeNextOrderAt"] is not None
        answer = await delete_certificates(platform.root, ids[:1], revoke="SUPERSEDED")
        assert answer == {"deletedIds": ids[:1], "revokedIds": ids[:1], "errors": []}


async def test_expired_or_pending_certificate_is_deleted_without_revocation(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with platform_with_certificates(environment, root, tmp_path, [SERVER_NAME]) as (
        platform,
        proxy,
        ids,
        (certificate,),
    ):
        pending_id = (await set_certificate(platform.root, serverName=OTHER_NAME, acme=True))[
            "certificate"
        ]["id"]
        platform.clock.offset = 3000 * ONE_DAY
        answer = await delete_certificates(platform.root, [*ids, pending_id], revoke="SUPERSEDED")
        assert answer == {"deletedIds": [*ids, pending_id], "revokedIds": [], "errors": []}
        assert (await status_at_pebble(platform, certificate))[0] == "Valid"
        assert REVOKE_PATH not in [path for path, _ in proxy.posts]


async def test_certificate_replaced_during_revocation_is_not_deleted(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with platform_with_certificates(environment, root, tmp_path, [SERVER_NAME]) as (
        platform,
        proxy,
        ids,
        (certificate,),
    ):
        cert, key = CertificateSigner().issue_certificate()

        async def replace_certificate() -> None:
            await set_certificate(platform.root, serverName=SERVER_NAME, cert=cert, privateKey=key)

        proxy.actions_by_path[REVOKE_PATH] = replace_certificate
        (error,) = (await delete_certificates(platform.root, ids, revoke="SUPERSEDED"))["errors"]
        assert (error["code"], field_path(error), item_index(error)) == (
            "CONFLICT",
            ["certificates"],
            0,
        )
        assert (await status_at_pebble(platform, certificate))[0] == "Revoked"
        assert (await platform.load_certificate())["issuer"] == "CN=Test CA"


async def test_uploaded_certificate_is_not_revoked(
    root: GraphQLClient, environment: Environment
) -> None:
    uploaded = await store_certificate(root)
    (error,) = (await delete_certificates(root, [uploaded["id"]], revoke="SUPERSEDED"))["errors"]
    assert (error["code"], error["path"]) == ("CONFLICT", ["revoke"])  # terms not agreed to
    await root(
        'mutation { settingSet(input: {key: "acme.termsAgreed", value: true}) { replayed } }'
    )
    acme_certificate = (await set_certificate(root, serverName=OTHER_NAME, acme=True))[
        "certificate"
    ]
    (error,) = (
        await delete_certificates(
            root, [acme_certificate["id"], uploaded["id"]], revoke="SUPERSEDED"
        )
    )["errors"]
    assert (error["code"], field_path(error), item_index(error)) == (
        "CONFLICT",
        ["certificates"],
        1,
    )
    assert len(await select_rows(environment, "SELECT * FROM certificates")) == 2


async def test_revocation_is_limited_to_twenty_and_refused_in_atomic_request(
    root: GraphQLClient, environment: Environment
) -> None:
    ids = [
        (await set_certificate(root, serverName=f"n{nth}.example.org", acme=True))["certificate"][
            "id"
        ]
        for nth in range(21)
    ]
    (error,) = (await delete_certificates(root, ids, revoke="SUPERSEDED"))["errors"]
    assert (error["path"], error["constraint"]) == (["certificates"], "MAX")
    answer = await root.execute(
        "mutation ($input: CertificateDeleteInput!) @atomic { certificateDelete(input: $input) "
        "{ errors { code } } }",
        input={"certificates": id_refs(ids[:1]), "revoke": "SUPERSEDED"},
    )
    assert answer["data"]["certificateDelete"]["errors"] == [{"code": "FORBIDDEN_OPERATION"}]
    assert len(await select_rows(environment, "SELECT * FROM certificates")) == 21


@pytest.mark.parametrize("options", [{}, {"idempotencyKey": "k"}])
async def test_conflict_after_revocations_keeps_revoked_state(
    environment: Environment, root: GraphQLClient, tmp_path: Path, options: dict[str, str]
) -> None:
    async with platform_with_certificates(
        environment, root, tmp_path, [SERVER_NAME, OTHER_NAME]
    ) as (
        platform,
        proxy,
        ids,
        certificates,
    ):
        cert, key = CertificateSigner().issue_certificate([OTHER_NAME])

        async def replace_other_certificate() -> None:
            answer = await set_certificate(
                platform.root, serverName=OTHER_NAME, cert=cert, privateKey=key
            )
            assert answer["errors"] == []

        proxy.actions_by_path[REVOKE_PATH] = replace_other_certificate
        answer = await delete_certificates(
            platform.root, ids, revoke="KEY_COMPROMISE", options=options
        )
        (error,) = answer["errors"]
        assert (error["code"], field_path(error), item_index(error)) == (
            "CONFLICT",
            ["certificates"],
            1,
        )
        for certificate in certificates:
            assert (await status_at_pebble(platform, certificate))[0] == "Revoked"
        assert (await platform.load_certificate(SERVER_NAME))["acmeState"] == "REVOKED"
        replaced = await platform.load_certificate(OTHER_NAME)
        assert (replaced["acmeState"] == "REVOKED", replaced["issuer"]) == (False, "CN=Test CA")
        log = await select_rows(environment, "SELECT mutation, after FROM audit_log ORDER BY id")
        revocations = [after for mutation, after in log if mutation == "certificateDelete"]
        assert len(revocations) == 2
        assert all("KEY_COMPROMISE" in str(after) for after in revocations)


async def test_certificate_given_twice_is_deleted_once(root: GraphQLClient) -> None:
    certificate = await store_certificate(root)
    references = [{"id": certificate["id"]}, {"serverName": SERVER_NAME}]
    payload = (await root(CERTIFICATE_DELETE, input={"certificates": references}))[
        "certificateDelete"
    ]
    assert payload == {"deletedIds": [certificate["id"]], "revokedIds": [], "errors": []}

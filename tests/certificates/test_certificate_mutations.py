"""Certificate mutations and lists: who can use them, and which input is refused."""

import logging
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from models.certificates import AcmeAccount, Certificate
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from resolvers.admin import secret_rotation
from resolvers.certificates import acme_accounts, stored_certificates
from tests.conftest import GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.operations.platform.certificate_operations import (
    CERTIFICATE_BEGIN,
    CERTIFICATE_DELETE,
    CERTIFICATE_QUERY,
    CERTIFICATE_RENEW,
    CERTIFICATE_SET,
    CERTIFICATES_QUERY,
    ONE_DAY,
    SERVER_NAME,
    CertificateSigner,
    private_key_pem,
    rsa_key,
    set_certificate,
    store_certificate,
)
from tests.support.schema.error_paths import field_path, item_index
from tests.support.stores.counter_check import load_journal_entries, select_rows


async def set_certificate_error(
    client: GraphQLClient, **arguments: Any
) -> tuple[str, list[str], int | None, str | None]:
    """Set a certificate and return code, path, index and rule of its only error."""
    answer = await set_certificate(client, **arguments)
    assert answer["certificate"] is None, arguments
    (error,) = answer["errors"]
    return error["code"], field_path(error), item_index(error), error.get("constraint")


async def test_certificate_is_set_read_and_deleted(
    root: GraphQLClient, environment: Environment
) -> None:
    cert, key = CertificateSigner().issue_certificate(
        [SERVER_NAME, "*.example.net", "Mail.Example.ORG"]
    )
    arguments = {"serverName": "MX.example.org.", "cert": cert, "privateKey": key}
    answer = await set_certificate(root, **arguments, description="Of mail")
    assert (answer["errors"], answer["warnings"]) == ([], [])
    certificate = answer["certificate"]
    assert certificate["serverName"] == SERVER_NAME
    assert certificate["altNames"] == [SERVER_NAME, "*.example.net", "mail.example.org"]
    assert (certificate["description"], certificate["acme"], certificate["acmeState"]) == (
        "Of mail",
        False,
        None,
    )
    assert certificate["issuer"] == "CN=Test CA"
    assert (certificate["startsAt"], certificate["expiresAt"]) == (
        "2029-12-01T00:00:00Z",
        "2030-03-01T00:00:00Z",
    )
    assert [len(certificate[name]) for name in ("fingerprint", "fingerprintSha256")] == [59, 95]
    assert (await root(CERTIFICATE_QUERY, by={"id": certificate["id"]}))[
        "certificate"
    ] == certificate
    assert (await root(CERTIFICATE_QUERY, by={"serverName": "Mx.Example.org"}))[
        "certificate"
    ] == certificate
    for unknown_name in ("mail.example.org", "a.example.net", "example.org", "", "\1", "a b"):
        assert (await root(CERTIFICATE_QUERY, by={"serverName": unknown_name}))[
            "certificate"
        ] is None, unknown_name
    deleted = (await root(CERTIFICATE_DELETE, input={"certificates": [{"id": certificate["id"]}]}))[
        "certificateDelete"
    ]
    assert (deleted["deletedIds"], deleted["errors"]) == ([certificate["id"]], [])
    assert (await root(CERTIFICATE_QUERY, by={"id": certificate["id"]}))["certificate"] is None
    assert await select_rows(environment, "SELECT * FROM certificate_names") == []


async def test_second_set_changes_only_given_fields(root: GraphQLClient) -> None:
    signer, own_key = CertificateSigner(), rsa_key()
    cert, key = signer.issue_certificate(key=own_key)
    first = await set_certificate(
        root, serverName=SERVER_NAME, cert=cert, privateKey=key, description="A"
    )
    later_cert, _ = signer.issue_certificate(key=own_key, days=100)
    # a new certificate for the stored key
    second = await set_certificate(root, serverName=SERVER_NAME, cert=later_cert)
    assert second["errors"] == []
    assert second["certificate"]["id"] == first["certificate"]["id"]
    assert second["certificate"]["description"] == "A"
    assert second["certificate"]["expiresAt"] > first["certificate"]["expiresAt"]
    third = await set_certificate(root, serverName=SERVER_NAME, description="")
    expected = second["certificate"] | {"description": None}
    assert third["certificate"] == expected
    other_cert, _ = signer.issue_certificate()
    assert await set_certificate_error(root, serverName=SERVER_NAME, cert=other_cert) == (
        "VALIDATION", ["cert"], None, "MISMATCH",
    )  # fmt: skip
    by_acme = (await set_certificate(root, serverName=SERVER_NAME, acme=True))["certificate"]
    assert (by_acme["acmeState"], by_acme["acmeNextOrderAt"]) == ("VALID", "2030-02-09T00:00:00Z")
    described = await set_certificate(root, serverName=SERVER_NAME, description="Main")
    assert described["certificate"] == {**by_acme, "description": "Main"}
    not_by_acme = (await set_certificate(root, serverName=SERVER_NAME, acme=False))["certificate"]
    assert (not_by_acme["acmeState"], not_by_acme["acmeNextOrderAt"]) == (None, None)


async def test_certificate_bundle_is_split_and_sorted(
    root: GraphQLClient, environment: Environment
) -> None:
    top = CertificateSigner("Top")
    middle = CertificateSigner("Middle", top)
    lower = CertificateSigner("Lower", middle)
    cert, key = lower.issue_certificate()
    stray = CertificateSigner("Stray")
    bundle = "junk\n" + top.pem + key + "words\n" + middle.pem + cert + stray.pem + lower.pem
    answer = await set_certificate(root, serverName=SERVER_NAME, cert=bundle)
    assert answer["errors"] == []
    assert answer["warnings"] == [{"code": "CERTIFICATES_LEFT_OUT", "path": ["ca"]}]
    ((chain,),) = await select_rows(environment, "SELECT chain FROM certificates")
    assert chain == cert + lower.pem + middle.pem + top.pem
    answer = await set_certificate(
        root, serverName=SERVER_NAME, cert=cert, privateKey=key, ca=[middle.pem, lower.pem]
    )
    assert (answer["errors"], answer["warnings"]) == ([], [])
    ((chain,),) = await select_rows(environment, "SELECT chain FROM certificates")
    assert chain == cert + lower.pem + middle.pem


async def test_unusual_certificate_is_stored_with_warning(root: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"names": ["other.example"]}, "NAME_NOT_IN_CERTIFICATE", "serverName"),
        ({"names": ["*.org"]}, "NAME_NOT_IN_CERTIFICATE", "serverName"),
        ({"begin": CERTIFICATE_BEGIN - 100 * ONE_DAY}, "CERTIFICATE_EXPIRED", "cert"),
        ({"begin": CERTIFICATE_BEGIN + 50 * ONE_DAY}, "CERTIFICATE_NOT_YET_VALID", "cert"),
        ({"for_clients": True}, "NOT_FOR_SERVERS", "cert"),
    ]
    for case in each_case(cases):
        with case as (issue_arguments, code, path):
            cert, key = CertificateSigner().issue_certificate(**issue_arguments)
            answer = await set_certificate(root, serverName=SERVER_NAME, cert=cert, privateKey=key)
            assert answer["errors"] == []
            assert answer["warnings"] == [{"code": code, "path": [path]}]


async def test_common_name_is_used_without_alternative_names(root: GraphQLClient) -> None:
    cert, key = CertificateSigner().issue_certificate((), common_name=SERVER_NAME)
    answer = await set_certificate(root, serverName=SERVER_NAME, cert=cert, privateKey=key)
    assert (answer["certificate"]["altNames"], answer["warnings"]) == ([SERVER_NAME], [])


async def test_unusable_certificate_is_refused_with_field_and_rule(
    root: GraphQLClient, environment: Environment
) -> None:
    cert, key = CertificateSigner().issue_certificate()
    other_cert, other_key = CertificateSigner().issue_certificate()
    weak_curve_key = ec.generate_private_key(ec.SECP224R1())
    weak_curve = CertificateSigner().issue_certificate(key=weak_curve_key)
    weak_rsa = CertificateSigner().issue_certificate(key=rsa_key(1024))
    encrypted_key = private_key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret")
    old_encrypted_key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM,
        PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"secret"),
    )
    dsa_key = private_key_pem(dsa.generate_private_key(2048))
    too_many_certs = "".join(CertificateSigner().pem for _ in range(21))
    broken_pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    for arguments, expected in (
        ({}, ("VALIDATION", ["cert"], None, "REQUIRED")),
        ({"cert": cert}, ("VALIDATION", ["privateKey"], None, "REQUIRED")),
        ({"privateKey": key}, ("VALIDATION", ["cert"], None, "PEM")),
        ({"cert": "", "privateKey": key}, ("VALIDATION", ["cert"], None, "PEM")),
        ({"cert": key, "privateKey": key}, ("VALIDATION", ["cert"], None, "PEM")),
        ({"cert": broken_pem, "privateKey": key}, ("VALIDATION", ["cert"], None, "PEM")),
        ({"cert": cert, "privateKey": cert}, ("VALIDATION", ["privateKey"], None, "PEM")),
        ({"cert": cert, "privateKey": "\1"}, ("VALIDATION", ["privateKey"], None, "PEM")),
        ({"cert": cert, "privateKey": key[:90]}, ("VALIDATION", ["privateKey"], None, "PEM")),
        ({"cert": cert, "privateKey": key + other_key},
         ("VALIDATION", ["privateKey"], None, "MAX")),
        ({"cert": cert, "privateKey": other_key}, ("VALIDATION", ["privateKey"], None, "MISMATCH")),
        ({"cert": other_cert + other_key, "privateKey": key},
         ("VALIDATION", ["privateKey"], None, "MISMATCH")),
        ({"cert": cert, "privateKey": encrypted_key},
         ("VALIDATION", ["privateKey"], None, "ENCRYPTED_KEY")),
        ({"cert": cert, "privateKey": old_encrypted_key.decode()},
         ("VALIDATION", ["privateKey"], None, "ENCRYPTED_KEY")),
        ({"cert": weak_curve[0], "privateKey": weak_curve[1]},
         ("VALIDATION", ["privateKey"], None, "WEAK")),
        ({"cert": weak_rsa[0], "privateKey": weak_rsa[1]},
         ("VALIDATION", ["privateKey"], None, "WEAK")),
        ({"cert": cert, "privateKey": dsa_key}, ("VALIDATION", ["privateKey"], None, "WEAK")),
        ({"cert": cert + too_many_certs, "privateKey": key}, ("VALIDATION", ["cert"], None, "MAX")),
        ({"cert": cert, "privateKey": key, "ca": [other_cert, "x"]},
         ("VALIDATION", ["ca"], 1, "PEM")),
        ({"cert": cert * 200, "privateKey": key}, ("VALIDATION", ["cert"], None, "LENGTH")),
        ({"cert": cert, "privateKey": key, "description": "a\nb"},
         ("VALIDATION", ["description"], None, "LENGTH")),
        ({"cert": cert, "privateKey": key, "description": "x" * 501},
         ("VALIDATION", ["description"], None, "LENGTH")),
    ):  # fmt: skip
        assert await set_certificate_error(root, serverName=SERVER_NAME, **arguments) == expected, (
            arguments
        )
    certificate_input = {"cert": cert, "privateKey": key}
    for name in (
        "", "a b", "*.example.org", "a..b", "192.0.2.1", "[::1]", "x" * 300, "a\r\nb", "ä@b",
        "-a.example", "a/b", "mx.example.org:25",
    ):  # fmt: skip
        expected = ("VALIDATION", ["serverName"], None, "DOMAIN")
        assert (
            await set_certificate_error(root, serverName=name, **certificate_input) == expected
        ), name
    assert (await set_certificate_error(root, serverName="localhost", acme=True))[1] == [
        "serverName"
    ]
    assert await select_rows(environment, "SELECT * FROM certificates") == []


async def test_certificate_list_is_filtered_and_paged(root: GraphQLClient) -> None:
    for name, names in (
        ("a.example.org", ["a.example.org"]),
        ("b.example.org", ["b.example.org", "*.shop.example"]),
        ("c.example.net", ["c.example.net", "mail.example.org"]),
        ("per_cent.example", ["x.example"]),
    ):
        await store_certificate(root, name, names=names)

    async def first_letters(**arguments: Any) -> list[str]:
        page = (await root(CERTIFICATES_QUERY, **arguments))["certificates"]
        assert (
            page["totalCount"] == len(page["nodes"]) or "first" in arguments or "last" in arguments
        )
        return [node["serverName"][:1] for node in page["nodes"]]

    assert await first_letters() == ["a", "b", "c", "p"]
    assert await first_letters(filter={"query": "example.ORG"}) == ["a", "b"]
    assert await first_letters(filter={"query": "example.org", "includeAltNames": True}) == [
        "a",
        "b",
        "c",
    ]
    assert await first_letters(filter={"query": "www.shop.example", "includeAltNames": True}) == [
        "b"
    ]
    assert await first_letters(filter={"query": "www.shop.example"}) == []
    assert await first_letters(filter={"query": "r_c"}) == ["p"]
    assert await first_letters(filter={"query": "%"}) == []
    assert await first_letters(last=1) == ["p"]
    letters, after = [], None
    while True:
        page = (await root(CERTIFICATES_QUERY, first=3, after=after))["certificates"]
        letters += [node["serverName"][:1] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            break
        after = page["pageInfo"]["endCursor"]
    assert letters == ["a", "b", "c", "p"]
    answer = await root.execute(CERTIFICATES_QUERY, first=3, after=after, filter={"query": "e"})
    assert answer["errors"][0]["extensions"]["code"] == "BAD_CURSOR"
    answer = await root.execute(CERTIFICATES_QUERY, filter={"query": "x" * 300})
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_users_and_domain_admins_cannot_see_or_change_certificates(
    root: GraphQLClient,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    http: httpx.AsyncClient,
    environment: Environment,
) -> None:
    certificate = await store_certificate(root)
    domain_admin = await make_domain_admin(environment, http, "clerk", list(AdminPermission))
    cert, key = CertificateSigner().issue_certificate()
    before = await select_rows(environment, "SELECT * FROM certificates")
    for client in (ada, domain_admin):
        for document, arguments in (
            (CERTIFICATES_QUERY, {}),
            (CERTIFICATE_QUERY, {"by": {"id": certificate["id"]}}),
            (CERTIFICATE_QUERY, {"by": {"serverName": SERVER_NAME}}),
            (
                CERTIFICATE_SET,
                {"input": {"serverName": SERVER_NAME, "cert": cert, "privateKey": key}},
            ),
            (CERTIFICATE_DELETE, {"input": {"certificates": [{"id": certificate["id"]}]}}),
            (CERTIFICATE_RENEW, {"input": {"certificates": [{"id": certificate["id"]}]}}),
        ):
            answer = await client.execute(document, **arguments)
            errors = answer.get("errors") or next(iter(answer["data"].values()))["errors"]
            code = errors[0].get("code") or errors[0]["extensions"]["code"]
            assert code == "FORBIDDEN", document
        node = await client("query ($id: ID!) { node(id: $id) { id } }", id=certificate["id"])
        assert node == {"node": None}
    assert await select_rows(environment, "SELECT * FROM certificates") == before
    assert (await admin_client(CERTIFICATE_QUERY, by={"id": certificate["id"]}))[
        "certificate"
    ] == certificate


async def test_changes_are_journaled_and_logged_without_the_key(
    root: GraphQLClient, environment: Environment
) -> None:
    certificate = await store_certificate(root)
    missing = global_ids.encode("Certificate", environment.new_id())
    for document in (CERTIFICATE_DELETE, CERTIFICATE_RENEW):
        answer = await root(
            document, input={"certificates": [{"id": certificate["id"]}, {"id": missing}]}
        )
        (error,) = next(iter(answer.values()))["errors"]
        assert error["code"] == "NOT_FOUND"
    answer = (await root(CERTIFICATE_RENEW, input={"certificates": [{"id": certificate["id"]}]}))[
        "certificateRenew"
    ]
    assert answer["errors"][0]["code"] == "CONFLICT"
    await root(CERTIFICATE_DELETE, input={"certificates": [{"id": certificate["id"]}]})
    entries = [
        certificate
        for certificate in await load_journal_entries(environment, PLATFORM)
        if "CERTIFICATE" in str(certificate)
    ]
    assert len(entries) == 2
    log = await select_rows(
        environment, "SELECT mutation, before, after FROM audit_log ORDER BY id"
    )
    assert [entry[0] for entry in log] == ["certificateSet", "certificateDelete"]
    assert "PRIVATE" not in str(log)


async def test_private_keys_are_encrypted_and_not_disclosed(
    root: GraphQLClient, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    cert, key = CertificateSigner().issue_certificate()
    key_body = "".join(key.splitlines()[1:-1])
    answer = await root.execute(
        CERTIFICATE_SET, input={"serverName": SERVER_NAME, "cert": cert, "privateKey": key}
    )
    refused_answer = await root.execute(
        CERTIFICATE_SET,
        input={
            "serverName": SERVER_NAME,
            "cert": CertificateSigner().issue_certificate()[0],
            "privateKey": key,
        },
    )
    assert refused_answer["data"]["certificateSet"]["errors"]
    account = await acme_accounts.load_or_create_account(environment, "https://acme.example/dir")
    assert "PRIVATE" in account.private_key
    assert account.private_key not in repr(account)
    stored_rows: list[Any] = []
    for table in ("certificates", "acme_accounts", "changes", "audit_log", "idempotent_payloads"):
        stored_rows += await select_rows(environment, f"SELECT * FROM {table}")  # noqa: S608 - our table names
    for output in (str(answer), str(refused_answer), str(stored_rows), caplog.text):
        assert key_body[20:60] not in output
        assert "PRIVATE KEY" not in output
    (row,) = await select_rows(environment, "SELECT id, private_key FROM certificates")
    assert environment.secret_box.decrypt(
        row[1], stored_certificates.encryption_context(row[0])
    ).startswith("-----BEGIN PRIV")
    encrypted_tables = {column.table for column in secret_rotation.ENCRYPTED_COLUMNS}
    assert {Certificate, AcmeAccount} <= encrypted_tables


async def test_undecryptable_private_key_is_reported(
    root: GraphQLClient, environment: Environment
) -> None:
    signer, own_key = CertificateSigner(), rsa_key()
    cert, key = signer.issue_certificate(key=own_key)
    await set_certificate(root, serverName=SERVER_NAME, cert=cert, privateKey=key)
    async with environment.write_session() as session:
        break_keys = update(Certificate).values(private_key="deadbeef.AAAA")
        await (await session.connection()).execute(break_keys.where(col(Certificate.id) > 0))
    answer = await set_certificate(
        root, serverName=SERVER_NAME, cert=signer.issue_certificate(key=own_key)[0]
    )
    assert [error["code"] for error in answer["errors"]] == ["UNAVAILABLE"]
    answer = await set_certificate(root, serverName=SERVER_NAME, cert=cert, privateKey=key)
    assert answer["errors"] == []


async def test_acme_certificate_waits_for_agreement_to_the_terms(
    root: GraphQLClient, environment: Environment
) -> None:
    answer = await set_certificate(root, serverName="Bücher.example", acme=True)
    certificate = answer["certificate"]
    assert (answer["errors"], certificate["serverName"]) == ([], "xn--bcher-kva.example")
    assert certificate["acmeState"] == "TERMS_NOT_AGREED"
    assert [certificate[name] for name in ("fingerprint", "expiresAt", "issuer")] == [None] * 3
    assert (await root(CERTIFICATE_QUERY, by={"serverName": "bücher.example"}))[
        "certificate"
    ] == certificate
    answer = (await root(CERTIFICATE_RENEW, input={"certificates": [{"id": certificate["id"]}]}))[
        "certificateRenew"
    ]
    assert answer["errors"] == []
    assert EventType.CERTIFICATE_UPDATED == "CERTIFICATE_UPDATED"
    assert environment.options.acme_terms_agreed is False


async def test_validate_only_stores_nothing(root: GraphQLClient, environment: Environment) -> None:
    cert, key = CertificateSigner().issue_certificate()
    arguments = {"serverName": SERVER_NAME, "cert": cert, "privateKey": key}
    answer = await set_certificate(root, **arguments, options={"validateOnly": True})
    assert answer["errors"] == []
    assert await select_rows(environment, "SELECT * FROM certificates") == []

"""Apple configuration profiles, read with plistlib and verified with openssl."""

import base64
import plistlib
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from models.errors import InvalidInput, NotFound, ServiceUnavailable
from models.runtime.options import Options
from models.store.keyset_pages import PageRequest
from resolvers.auth import app_password_pages, app_passwords
from resolvers.auth.app_password_pages import AppPasswordOrder, AppPasswordPageKey
from resolvers.auth.app_password_validation import AppPasswordScope, NewAppPassword
from resolvers.context import Context
from tests.conftest import TEST_OPTIONS, GraphQLClient, client_context
from tests.support.accounts.two_factor_operations import run_auth_mutation
from tests.support.case_loop import each_case
from tests.support.operations.quarantine_operations import set_options

SERVERS = {
    "profile_imap_server": "imap.example.org:993",
    "profile_pop3_server": "pop.example.org:995",
}
OPTIONS_WITH_SERVERS = replace(
    TEST_OPTIONS,
    profile_imap_server=SERVERS["profile_imap_server"],
    profile_pop3_server=SERVERS["profile_pop3_server"],
)
IMAP, POP3, SMTP, ALL = (AppPasswordScope(name) for name in ("IMAP", "POP3", "SMTP", "ALL"))


async def create_profile(
    client: GraphQLClient, options: Options = OPTIONS_WITH_SERVERS, **fields: Any
) -> tuple[bytes, str]:
    """Create a profile, and return its bytes and the password in it."""
    ctx = Context(replace(client.environment, options=options), client_context(client).viewer)
    new_password = NewAppPassword(**{"description": "Phone", "profile": True, **fields})
    created = await app_passwords.create_app_password(ctx, None, new_password)
    assert created.profile
    assert created.password is not None
    return base64.b64decode(created.profile), created.password


async def test_profile_contains_the_account(ada: GraphQLClient) -> None:
    raw, password = await create_profile(ada)
    profile_data = plistlib.loads(raw)
    assert (profile_data["PayloadType"], profile_data["PayloadVersion"]) == ("Configuration", 1)
    (account,) = profile_data["PayloadContent"]
    assert account["PayloadType"] == "com.apple.mail.managed"
    assert account["EmailAccountType"] == "EmailTypeIMAP"
    assert account["EmailAddress"] == "ada@example.org"
    assert account["IncomingPassword"] == password
    assert account["OutgoingPasswordSameAsIncomingPassword"] is True
    for direction, host, port in (
        ("Incoming", "imap.example.org", 993),
        ("Outgoing", "mx.example.org", 465),
    ):
        assert account[f"{direction}MailServerHostName"] == host
        assert account[f"{direction}MailServerPortNumber"] == port
        assert account[f"{direction}MailServerUseSSL"] is True
        assert account[f"{direction}MailServerUsername"] == "ada"
    assert profile_data["PayloadUUID"] != account["PayloadUUID"]


async def test_mobileconfig_is_base64(ada: GraphQLClient) -> None:
    set_options(ada.environment, **SERVERS)
    arguments = {"description": "<Phone> & co", "generateMobileconfig": True}
    payload = await run_auth_mutation(
        ada, "appPasswordCreate", "mobileconfig password", **arguments
    )
    (account,) = plistlib.loads(base64.b64decode(payload["mobileconfig"]))["PayloadContent"]
    assert account["IncomingPassword"] == payload["password"]
    assert account["EmailAccountDescription"] == "<Phone> & co"
    plain_payload = await run_auth_mutation(
        ada, "appPasswordCreate", "mobileconfig", description="x"
    )
    assert plain_payload["mobileconfig"] is None


async def test_imap_is_preferred_to_pop3(ada: GraphQLClient) -> None:
    cases: list[tuple[list[AppPasswordScope], str, int]] = [
        ([ALL], "EmailTypeIMAP", 993),
        ([IMAP, POP3, SMTP], "EmailTypeIMAP", 993),
        ([IMAP, SMTP], "EmailTypeIMAP", 993),
        ([POP3, SMTP], "EmailTypePOP", 995),
    ]
    for case in each_case(cases):
        with case as (scopes, account_type, port):
            raw, _ = await create_profile(ada, scopes=scopes)
            (account,) = plistlib.loads(raw)["PayloadContent"]
            assert (account["EmailAccountType"], account["IncomingMailServerPortNumber"]) == (
                account_type,
                port,
            )


async def test_scopes_without_reading_or_sending_are_refused(ada: GraphQLClient) -> None:
    cases: list[list[AppPasswordScope]] = [[IMAP], [SMTP], [IMAP, POP3], [AppPasswordScope.MAIL]]
    for case in each_case(cases):
        with case as scopes:
            with pytest.raises(InvalidInput) as refusal:
                await create_profile(ada, scopes=scopes)
            assert (refusal.value.path, refusal.value.constraint) == (["scopes"], "SCOPE")


async def test_profile_without_configured_server_is_refused(ada: GraphQLClient) -> None:
    arguments = {"description": "Phone", "generateMobileconfig": True}
    document = """mutation ($input: AppPasswordCreateInput!) { appPasswordCreate(input: $input) {
      mobileconfig password errors { code path ... on ValidationError { constraint } } } }"""
    payload = (await ada(document, input=arguments))["appPasswordCreate"]
    path = ["generateMobileconfig"]
    assert payload["errors"] == [{"code": "VALIDATION", "path": path, "constraint": "SERVER"}]
    assert (payload["mobileconfig"], payload["password"]) == (None, None)
    raw, _ = await create_profile(
        ada, replace(TEST_OPTIONS, profile_pop3_server="pop.example.org:995")
    )
    (account,) = plistlib.loads(raw)["PayloadContent"]
    assert account["EmailAccountType"] == "EmailTypePOP"
    assert account["IncomingMailServerHostName"] == "pop.example.org"
    with pytest.raises(InvalidInput) as refusal:
        await create_profile(
            ada,
            replace(TEST_OPTIONS, profile_pop3_server="pop.example.org:995"),
            scopes=[IMAP, SMTP],
        )
    assert refusal.value.constraint == "SCOPE"


async def test_profile_address_must_belong_to_the_user(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    raw, _ = await create_profile(ada, address="A.da@Example.org")
    (account,) = plistlib.loads(raw)["PayloadContent"]
    assert account["EmailAddress"] == "A.da@example.org"
    for other_address in (bob.address, "nobody@example.org", "ada@elsewhere.example"):
        with pytest.raises(NotFound) as refusal:
            await create_profile(ada, address=other_address)
        assert refusal.value.path == ["address"]
    for invalid_address in ("ada", "x" * 10_000, "a@b@c"):
        with pytest.raises(InvalidInput):
            await create_profile(ada, address=invalid_address)


async def test_profile_uses_the_configured_servers(ada: GraphQLClient) -> None:
    options = replace(
        TEST_OPTIONS,
        profile_imap_server="imap.example.org:1993",
        profile_smtp_server="smtp.example.org:587",
    )
    raw, _ = await create_profile(ada, options)
    (account,) = plistlib.loads(raw)["PayloadContent"]
    assert account["IncomingMailServerHostName"] == "imap.example.org"
    assert account["IncomingMailServerPortNumber"] == 1993
    assert account["OutgoingMailServerHostName"] == "smtp.example.org"
    assert account["OutgoingMailServerPortNumber"] == 587


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.example.org")])
    now = datetime.now(UTC)
    signed_certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "profile.pem", folder / "profile.key"
    cert_file.write_bytes(signed_certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


def verify_signature(signed_file: Path, cert_file: Path) -> "subprocess.CompletedProcess[bytes]":
    """Verify the signature with openssl, which prints the profile."""
    command = ["openssl", "cms", "-verify", "-inform", "DER", "-in", str(signed_file), "-binary"]
    command += ["-CAfile", str(cert_file), "-purpose", "any"]
    return subprocess.run(command, capture_output=True, check=False)


async def test_profile_is_signed_with_the_configured_certificate(
    ada: GraphQLClient, tmp_path: Path
) -> None:
    cert, key = write_certificate(tmp_path)
    combined_file = tmp_path / "both.pem"
    combined_file.write_bytes(cert.read_bytes() + key.read_bytes())
    raw, _ = await create_profile(ada, replace(OPTIONS_WITH_SERVERS, profile_cert=combined_file))
    (tmp_path / "one").write_bytes(raw)
    assert verify_signature(tmp_path / "one", cert).returncode == 0
    raw, password = await create_profile(
        ada, replace(OPTIONS_WITH_SERVERS, profile_cert=cert, profile_key=key)
    )
    file = tmp_path / "signed.mobileconfig"
    file.write_bytes(raw)
    result = verify_signature(file, cert)
    assert result.returncode == 0, result.stderr
    (account,) = plistlib.loads(result.stdout)["PayloadContent"]
    assert account["IncomingPassword"] == password
    position = raw.index(b"EmailTypeIMAP")
    file.write_bytes(raw[:position] + b"EmailTypeIMAX" + raw[position + 13 :])
    assert verify_signature(file, cert).returncode != 0


async def test_unusable_certificate_creates_no_password(ada: GraphQLClient, tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    empty = tmp_path / "empty"
    empty.write_text("")
    (tmp_path / "other").mkdir()
    _, other_key = write_certificate(tmp_path / "other")
    for cert_file, key_file in (
        (tmp_path / "none", key),
        (empty, key),
        (cert, empty),
        (cert, other_key),
    ):
        with pytest.raises(ServiceUnavailable):
            await create_profile(
                ada, replace(OPTIONS_WITH_SERVERS, profile_cert=cert_file, profile_key=key_file)
            )
    newest_first = app_password_pages.LIST_ORDERS[AppPasswordOrder.CREATED_AT_DESC]
    page_key = AppPasswordPageKey(ada.user.id, PageRequest("x"), newest_first)
    assert await app_password_pages.count_app_passwords(client_context(ada), [page_key]) == [0]

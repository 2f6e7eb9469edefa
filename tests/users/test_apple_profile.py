"""Profiles for Apple's devices, as plistlib reads them and openssl checks them."""

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
from resolvers.auth import app_passwords
from resolvers.auth.app_passwords import AppPasswordScope, NewAppPassword
from resolvers.context import Context
from tests.conftest import CHEAP, Client, context
from tests.support.accounts.two_factor_operations import ask
from tests.support.operations.quarantine_operations import set_options

SERVERS = {"imap_server": "imap.example.org:993", "pop3_server": "pop.example.org:995"}
BESIDE = replace(CHEAP, imap_server=SERVERS["imap_server"], pop3_server=SERVERS["pop3_server"])
IMAP, POP3, SMTP, ALL = (AppPasswordScope(name) for name in ("IMAP", "POP3", "SMTP", "ALL"))


async def profile(client: Client, options: Options = BESIDE, **given: Any) -> tuple[bytes, str]:
    """The bytes of a new profile, and the password in it."""
    ctx = Context(replace(client.world, options=options), context(client).viewer)
    new = NewAppPassword(**{"description": "Phone", "profile": True, **given})
    created = await app_passwords.create_app_password(ctx, None, new)
    assert created.profile
    return base64.b64decode(created.profile), created.password


async def test_a_profile_holds_the_account(ada: Client) -> None:
    raw, password = await profile(ada)
    read = plistlib.loads(raw)
    assert (read["PayloadType"], read["PayloadVersion"]) == ("Configuration", 1)
    (account,) = read["PayloadContent"]
    assert account["PayloadType"] == "com.apple.mail.managed"
    assert account["EmailAccountType"] == "EmailTypeIMAP"
    assert account["EmailAddress"] == "ada@example.org"
    assert account["IncomingPassword"] == password
    assert account["OutgoingPasswordSameAsIncomingPassword"] is True
    for way, host, port in (
        ("Incoming", "imap.example.org", 993),
        ("Outgoing", "mx.example.org", 465),
    ):
        assert account[f"{way}MailServerHostName"] == host
        assert account[f"{way}MailServerPortNumber"] == port
        assert account[f"{way}MailServerUseSSL"] is True
        assert account[f"{way}MailServerUsername"] == "ada"
    assert read["PayloadUUID"] != account["PayloadUUID"]


async def test_the_schema_gives_it_in_base64(ada: Client) -> None:
    set_options(ada.world, **SERVERS)
    given = {"description": "<Phone> & co", "generateMobileconfig": True}
    done = await ask(ada, "appPasswordCreate", "mobileconfig password", **given)
    (account,) = plistlib.loads(base64.b64decode(done["mobileconfig"]))["PayloadContent"]
    assert account["IncomingPassword"] == done["password"]
    assert account["EmailAccountDescription"] == "<Phone> & co"
    plain = await ask(ada, "appPasswordCreate", "mobileconfig", description="x")
    assert plain["mobileconfig"] is None


@pytest.mark.parametrize(
    ("scopes", "kind", "port"),
    [
        ([ALL], "EmailTypeIMAP", 993),
        ([IMAP, POP3, SMTP], "EmailTypeIMAP", 993),
        ([IMAP, SMTP], "EmailTypeIMAP", 993),
        ([POP3, SMTP], "EmailTypePOP", 995),
    ],
)
async def test_imap_is_preferred(
    ada: Client, scopes: list[AppPasswordScope], kind: str, port: int
) -> None:
    raw, _ = await profile(ada, scopes=scopes)
    (account,) = plistlib.loads(raw)["PayloadContent"]
    assert (account["EmailAccountType"], account["IncomingMailServerPortNumber"]) == (kind, port)


@pytest.mark.parametrize("scopes", [[IMAP], [SMTP], [IMAP, POP3], [AppPasswordScope.MAIL]])
async def test_mail_must_be_read_and_sent(ada: Client, scopes: list[AppPasswordScope]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await profile(ada, scopes=scopes)
    assert (refusal.value.path, refusal.value.constraint) == (["scopes"], "scope")


async def test_no_server_is_named_that_nobody_runs(ada: Client) -> None:
    given = {"description": "Phone", "generateMobileconfig": True}
    document = """mutation ($input: AppPasswordCreateInput!) { appPasswordCreate(input: $input) {
      mobileconfig password errors { code path ... on ValidationError { constraint } } } }"""
    done = (await ada(document, input=given))["appPasswordCreate"]
    path = ["generateMobileconfig"]
    assert done["errors"] == [{"code": "VALIDATION", "path": path, "constraint": "server"}]
    assert (done["mobileconfig"], done["password"]) == (None, None)
    raw, _ = await profile(ada, replace(CHEAP, pop3_server="pop.example.org:995"))
    (account,) = plistlib.loads(raw)["PayloadContent"]
    assert account["EmailAccountType"] == "EmailTypePOP"
    assert account["IncomingMailServerHostName"] == "pop.example.org"
    with pytest.raises(InvalidInput) as refusal:
        await profile(ada, replace(CHEAP, pop3_server="pop.example.org:995"), scopes=[IMAP, SMTP])
    assert refusal.value.constraint == "scope"


async def test_the_address_is_the_users(ada: Client, bob: Client) -> None:
    raw, _ = await profile(ada, address="A.da@Example.org")
    (account,) = plistlib.loads(raw)["PayloadContent"]
    assert account["EmailAddress"] == "A.da@example.org"
    for other in (bob.address, "nobody@example.org", "ada@elsewhere.example"):
        with pytest.raises(NotFound) as refusal:
            await profile(ada, address=other)
        assert refusal.value.path == ["address"]
    for bad in ("ada", "x" * 10_000, "a@b@c"):
        with pytest.raises(InvalidInput):
            await profile(ada, address=bad)


async def test_servers_are_as_they_are_set(ada: Client) -> None:
    set_ = replace(CHEAP, imap_server="imap.example.org:1993", smtp_server="smtp.example.org:587")
    raw, _ = await profile(ada, set_)
    (account,) = plistlib.loads(raw)["PayloadContent"]
    assert account["IncomingMailServerHostName"] == "imap.example.org"
    assert account["IncomingMailServerPortNumber"] == 1993
    assert account["OutgoingMailServerHostName"] == "smtp.example.org"
    assert account["OutgoingMailServerPortNumber"] == 587


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.example.org")])
    now = datetime.now(UTC)
    made = (
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
    cert, private = folder / "profile.pem", folder / "profile.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert, private


def checked(signed: Path, cert: Path) -> "subprocess.CompletedProcess[bytes]":
    """What openssl says of it: the profile, where the signature is right."""
    words = ["openssl", "cms", "-verify", "-inform", "DER", "-in", str(signed), "-binary"]
    words += ["-CAfile", str(cert), "-purpose", "any"]
    return subprocess.run(words, capture_output=True, check=False)


async def test_a_profile_is_signed_where_a_certificate_is_set(ada: Client, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    raw, _ = await profile(ada, replace(BESIDE, profile_cert=both))
    (tmp_path / "one").write_bytes(raw)
    assert checked(tmp_path / "one", cert).returncode == 0
    raw, password = await profile(ada, replace(BESIDE, profile_cert=cert, profile_key=key))
    file = tmp_path / "signed.mobileconfig"
    file.write_bytes(raw)
    said = checked(file, cert)
    assert said.returncode == 0, said.stderr
    (account,) = plistlib.loads(said.stdout)["PayloadContent"]
    assert account["IncomingPassword"] == password
    at = raw.index(b"EmailTypeIMAP")
    file.write_bytes(raw[:at] + b"EmailTypeIMAX" + raw[at + 13 :])
    assert checked(file, cert).returncode != 0


async def test_a_certificate_that_cannot_be_used_makes_no_password(
    ada: Client, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path)
    empty = tmp_path / "empty"
    empty.write_text("")
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other")
    for first, second in ((tmp_path / "none", key), (empty, key), (cert, empty), (cert, other)):
        with pytest.raises(ServiceUnavailable):
            await profile(ada, replace(BESIDE, profile_cert=first, profile_key=second))
    assert await app_passwords.load_app_passwords_of_users(context(ada), [(ada.user.id, True)]) == [
        []
    ]

"""Configuration profiles for Apple devices, which set up a mail account."""

import asyncio
import base64
import plistlib
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mail.addresses import address_syntax
from mail.recipients import address_resolution
from models.auth.application_passwords import AppPassword
from models.errors import Invalid, NotFound, Unavailable
from models.runtime.environment import World
from models.runtime.options import Options
from models.store.columns import Picked
from resolvers.addresses.loaders import mains
from resolvers.auth.second_factors.totp import PRODUCT
from resolvers.context import Context

IMAP, POP3, SMTP, ALL = "IMAP", "POP3", "SMTP", "ALL"
SUBMISSIONS = 465  # implicit TLS (RFC 8314)
KINDS = {IMAP: "EmailTypeIMAP", POP3: "EmailTypePOP"}


def incoming_protocol(options: Options, scopes: Collection[str], *, path: str) -> str:
    """Return the protocol that the profile reads mail by: IMAP, or else POP3.

    Merganser serves neither: only a server that a setting names is offered. Apple's payload for
    mail must name one. Raises Invalid if none is set, or if the scopes don't allow it and SMTP.
    """
    offered = [read for read in (IMAP, POP3) if _server_set(options, read)]
    if not offered:
        text = "there is no IMAP or POP3 server that a profile could name"
        raise Invalid(text, constraint="server", path=["generateMobileconfig"])
    for read in offered:
        if ALL in scopes or {read, SMTP} <= set(scopes):
            return read
    text = f"a profile needs the scopes SMTP and {' or '.join(offered)}"
    raise Invalid(text, constraint="scope", path=[path])


def _server_set(options: Options, protocol: str) -> str:
    """Return the host and port of the server that is set; empty if none is."""
    return options.imap_server if protocol == IMAP else options.pop3_server


async def address_of(ctx: Context, user: Picked, address: str | None) -> str:
    """Return the address to write from: this, or the user's main address.

    Raises NotFound if the address is not the user's.
    """
    if address is None:
        (main,) = await mains(ctx, [user.id])
        if main is None:
            raise NotFound(user.username, path=["address"])
        return str(main.shown)
    shown = address_syntax.checked(address)
    if await address_resolution.login_of(ctx.world, shown) != user.id:
        raise NotFound(shown, path=["address"])
    return shown


def _host_and_port(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    return host, int(port)


async def make(world: World, user: Picked, row: AppPassword, address: str, password: str) -> str:
    """Build the profile in base64: a property list, signed if a certificate is set.

    Raises Unavailable if the certificate can't be used.
    """
    listed = plistlib.dumps(_profile(world, user, row, address, password))
    options = world.options
    if cert := options.profile_cert:
        listed = await asyncio.to_thread(_signed, listed, cert, options.profile_key or cert)
    return base64.b64encode(listed).decode()


def _profile(
    world: World, user: Picked, row: AppPassword, address: str, password: str
) -> dict[str, Any]:
    """Return the profile as the dictionary of a property list."""
    options = world.options
    read = incoming_protocol(options, row.scopes, path="scopes")
    incoming, port = _host_and_port(_server_set(options, read))
    submission = options.smtp_server or f"{options.hostname}:{SUBMISSIONS}"
    outgoing, port_out = _host_and_port(submission)
    place = ".".join(reversed(options.hostname.split(".")))
    account = {
        "EmailAccountDescription": row.description,
        "EmailAccountName": user.name or user.username,
        "EmailAccountType": KINDS[read],
        "EmailAddress": address,
        "IncomingMailServerAuthentication": "EmailAuthPassword",
        "IncomingMailServerHostName": incoming,
        "IncomingMailServerPortNumber": port,
        "IncomingMailServerUseSSL": True,
        "IncomingMailServerUsername": user.username,
        "IncomingPassword": password,
        "OutgoingMailServerAuthentication": "EmailAuthPassword",
        "OutgoingMailServerHostName": outgoing,
        "OutgoingMailServerPortNumber": port_out,
        "OutgoingMailServerUseSSL": True,
        "OutgoingMailServerUsername": user.username,
        "OutgoingPasswordSameAsIncomingPassword": True,
        **_payload(world, "com.apple.mail.managed", f"{place}.mail.{row.id}", row.description),
    }
    return {
        "PayloadContent": [account],
        "PayloadDescription": f"Mail of {address}",
        "PayloadOrganization": PRODUCT,
        "PayloadRemovalDisallowed": False,
        **_payload(world, "Configuration", f"{place}.profile.{row.id}", row.description),
    }


def _payload(world: World, kind: str, name: str, shown: str) -> dict[str, Any]:
    """Return the keys that each payload has."""
    return {
        "PayloadDisplayName": shown,
        "PayloadIdentifier": name,
        "PayloadType": kind,
        "PayloadUUID": str(uuid.UUID(bytes=world.random(16), version=4)).upper(),
        "PayloadVersion": 1,
    }


def _signed(listed: bytes, cert: Path, key: Path) -> bytes:
    """Return the profile inside a CMS signature (RFC 5652), DER.

    Raises Unavailable if certificate or key can't be used.
    """
    from cryptography import x509  # noqa: PLC0415 - only where a profile is signed
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import pkcs7  # noqa: PLC0415

    try:
        own, *between = x509.load_pem_x509_certificates(cert.read_bytes())
        private: Any = serialization.load_pem_private_key(key.read_bytes(), password=None)
        if private.public_key() != own.public_key():
            raise ValueError("the key is another certificate's")
        builder = pkcs7.PKCS7SignatureBuilder().set_data(listed)
        builder = builder.add_signer(own, private, hashes.SHA256())
        for each in between:
            builder = builder.add_certificate(each)
        return builder.sign(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])
    except (OSError, ValueError, TypeError) as problem:
        text = "profiles cannot be signed: certificate or key cannot be used"
        raise Unavailable(text, component="profile") from problem

"""Configuration profiles for Apple devices, which set up a mail account."""

import asyncio
import base64
import plistlib
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mail.addresses import address_syntax
from mail.domains.submission_servers import split_host_and_port, submission_server_of_profiles
from mail.recipients import address_resolution
from models.auth.application_passwords import ApplicationPassword
from models.errors import InvalidInput, NotFound, ServiceUnavailable
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.addresses.loaders import load_visible_main_addresses_by_user
from resolvers.auth.second_factors.totp import PRODUCT
from resolvers.context import Context

IMAP, POP3, SMTP, ALL = "IMAP", "POP3", "SMTP", "ALL"
ACCOUNT_TYPES = {IMAP: "EmailTypeIMAP", POP3: "EmailTypePOP"}


def incoming_protocol_or_raise(
    options: Options, scopes: Collection[str], *, scopes_field: str
) -> str:
    """Return the protocol that the profile reads mail by: IMAP, or else POP3.

    Merganser serves neither: only a server that a setting names is offered. Apple's payload for
    mail must name one. Raises InvalidInput if none is set, or if the scopes don't allow it and
    SMTP.
    """
    offered_protocols = [
        protocol for protocol in (IMAP, POP3) if _configured_server(options, protocol)
    ]
    if not offered_protocols:
        text = "A profile requires a configured IMAP or POP3 server."
        raise InvalidInput(
            text, constraint=ValidationConstraint.SERVER, path=["generateMobileconfig"]
        )
    for protocol in offered_protocols:
        if ALL in scopes or {protocol, SMTP} <= set(scopes):
            return protocol
    text = f"A profile requires the scopes SMTP and {' or '.join(offered_protocols)}."
    raise InvalidInput(text, constraint=ValidationConstraint.SCOPE, path=[scopes_field])


def _configured_server(options: Options, protocol: str) -> str:
    """Return the host and port of the server that is set; empty if none is."""
    return options.profile_imap_server if protocol == IMAP else options.profile_pop3_server


async def require_profile_address(ctx: Context, user: ColumnRow, address: str | None) -> str:
    """Return the address to write from: this, or the user's main address.

    Raises NotFound if the address is not the user's.
    """
    if address is None:
        (main_address,) = await load_visible_main_addresses_by_user(ctx, [user.id])
        if main_address is None:
            raise NotFound(user.username, path=["address"])
        return str(main_address.display_address)
    displayed = address_syntax.normalize_and_validate_address(address)
    if await address_resolution.find_sign_in_user_id(ctx.environment, displayed) != user.id:
        raise NotFound(displayed, path=["address"])
    return displayed


async def build_profile(
    environment: Environment,
    user: ColumnRow,
    app_password: ApplicationPassword,
    address: str,
    password: str,
) -> str:
    """Build the profile in base64: a property list, signed if a certificate is set.

    Raises ServiceUnavailable if the certificate can't be used.
    """
    property_list = plistlib.dumps(
        _profile_payload(environment, user, app_password, address, password)
    )
    options = environment.options
    if cert := options.profile_cert:
        property_list = await asyncio.to_thread(
            _sign_profile, property_list, cert, options.profile_key or cert
        )
    return base64.b64encode(property_list).decode()


def _profile_payload(
    environment: Environment,
    user: ColumnRow,
    app_password: ApplicationPassword,
    address: str,
    password: str,
) -> dict[str, Any]:
    """Return the profile as the dictionary of a property list."""
    options = environment.options
    protocol = incoming_protocol_or_raise(options, app_password.scopes, scopes_field="scopes")
    incoming_host, incoming_port = split_host_and_port(_configured_server(options, protocol))
    outgoing_server = submission_server_of_profiles(options)
    reversed_hostname = ".".join(reversed(options.hostname.split(".")))
    account = {
        "EmailAccountDescription": app_password.description,
        "EmailAccountName": user.name or user.username,
        "EmailAccountType": ACCOUNT_TYPES[protocol],
        "EmailAddress": address,
        "IncomingMailServerAuthentication": "EmailAuthPassword",
        "IncomingMailServerHostName": incoming_host,
        "IncomingMailServerPortNumber": incoming_port,
        "IncomingMailServerUseSSL": True,
        "IncomingMailServerUsername": user.username,
        "IncomingPassword": password,
        "OutgoingMailServerAuthentication": "EmailAuthPassword",
        "OutgoingMailServerHostName": outgoing_server.host,
        "OutgoingMailServerPortNumber": outgoing_server.port,
        "OutgoingMailServerUseSSL": True,
        "OutgoingMailServerUsername": user.username,
        "OutgoingPasswordSameAsIncomingPassword": True,
        **_common_payload(
            environment,
            "com.apple.mail.managed",
            f"{reversed_hostname}.mail.{app_password.id}",
            app_password.description,
        ),
    }
    return {
        "PayloadContent": [account],
        "PayloadDescription": f"Mail of {address}",
        "PayloadOrganization": PRODUCT,
        "PayloadRemovalDisallowed": False,
        **_common_payload(
            environment,
            "Configuration",
            f"{reversed_hostname}.profile.{app_password.id}",
            app_password.description,
        ),
    }


def _common_payload(
    environment: Environment, payload_type: str, identifier: str, display_name: str
) -> dict[str, Any]:
    """Return the keys that each payload has."""
    return {
        "PayloadDisplayName": display_name,
        "PayloadIdentifier": identifier,
        "PayloadType": payload_type,
        "PayloadUUID": str(uuid.UUID(bytes=environment.random_bytes(16), version=4)).upper(),
        "PayloadVersion": 1,
    }


def _sign_profile(property_list: bytes, certificate_path: Path, key_path: Path) -> bytes:
    """Return the profile inside a CMS signature (RFC 5652), DER.

    Raises ServiceUnavailable if certificate or key can't be used.
    """
    from cryptography import x509  # noqa: PLC0415 - only where a profile is signed
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import pkcs7  # noqa: PLC0415

    try:
        certificate, *intermediates = x509.load_pem_x509_certificates(certificate_path.read_bytes())
        private_key: Any = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        if private_key.public_key() != certificate.public_key():
            raise ValueError("The private key belongs to another certificate.")
        builder = pkcs7.PKCS7SignatureBuilder().set_data(property_list)
        builder = builder.add_signer(certificate, private_key, hashes.SHA256())
        for intermediate in intermediates:
            builder = builder.add_certificate(intermediate)
        return builder.sign(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])
    except (OSError, ValueError, TypeError) as problem:
        text = "Profiles can't be signed: the certificate or private key is unusable."
        raise ServiceUnavailable(text, component="profile") from problem

"""Authenticators for second factors: TOTP codes and WebAuthn security keys."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from models.runtime.environment import Environment
from resolvers.auth.second_factors import totp
from tests.conftest import GraphQLClient

RELYING_PARTY_ID, ORIGIN = "mail.example.org", "https://mail.example.org"
# flags of authenticator data
USER_PRESENT, USER_VERIFIED, ATTESTED_CREDENTIAL_DATA = 0x01, 0x04, 0x40


def mutation_document(name: str, fields: str = "") -> str:
    """A mutation that takes its input from the variable `$input`."""
    input_type = f"{name[0].upper()}{name[1:]}Input"
    return (
        f"mutation ($input: {input_type}!) {{ {name}(input: $input) "
        f"{{ {fields} errors {{ code message path }} }} }}"
    )


TOTP_SETUP_MUTATION = mutation_document("totpSetup", "secret otpauthUrl qrCode")
TOTP_ENABLE_MUTATION = mutation_document("totpEnable", "recoveryCodes user { twoFactorMethods }")
WEBAUTHN_CHALLENGE_MUTATION = mutation_document("webauthnChallenge", "challenge")
WEBAUTHN_REGISTER_MUTATION = mutation_document(
    "webauthnRegister", "webauthnKey { id name } recoveryCodes user { twoFactorMethods }"
)


def totp_code(environment: Environment, secret: str, steps: int = 0) -> str:
    """The TOTP code of now, or of `steps` time steps later."""
    key_bytes = totp.decode_secret(secret)
    return totp.code_at(
        key_bytes, totp.step_at(environment.now() + timedelta(seconds=steps * totp.STEP_SECONDS))
    )


async def create_totp_secret(client: GraphQLClient) -> str:
    """Create a TOTP secret. TOTP is not enabled yet."""
    payload = (await client(TOTP_SETUP_MUTATION, input={}))["totpSetup"]
    assert payload["errors"] == []
    secret: str = payload["secret"]
    return secret


async def enable_totp(client: GraphQLClient) -> tuple[str, list[str]]:
    """Enable TOTP with the current code; return the TOTP secret and the recovery codes."""
    secret = await create_totp_secret(client)
    input_values = {"token": totp_code(client.environment, secret)}
    payload = (await client(TOTP_ENABLE_MUTATION, input=input_values))["totpEnable"]
    assert payload["errors"] == []
    return secret, payload["recoveryCodes"]


async def enable_totp_and_return_code(client: GraphQLClient) -> str:
    """Enable TOTP and return the next valid code."""
    secret, _ = await enable_totp(client)
    return totp_code(client.environment, secret, 1)


def base64url_encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def base64url_decode(encoded: str) -> bytes:
    return base64.urlsafe_b64decode(encoded + "===")


@dataclass
class SoftwareAuthenticator:
    """A WebAuthn authenticator with one credential (W3C Web Authentication)."""

    algorithm: str = "ES256"
    credential_id: bytes = field(
        default_factory=lambda: hashlib.sha256(str(id(object())).encode()).digest()
    )
    sign_count: int = 0
    increments_sign_count: bool = True
    node_id: str = ""
    private_key: Any = None

    def __post_init__(self) -> None:
        if self.algorithm == "ES256":
            self.private_key = ec.generate_private_key(ec.SECP256R1())
        else:
            self.private_key = ed25519.Ed25519PrivateKey.generate()
        self.credential_id = hashlib.sha256(self._cose_key()).digest()

    def _cose_key(self) -> bytes:
        """The public key as a COSE_Key (RFC 9052)."""
        if self.algorithm == "ES256":
            point = self.private_key.public_key().public_numbers()
            x, y = point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big")
            return cbor2.dumps({1: 2, 3: -7, -1: 1, -2: x, -3: y})
        return cbor2.dumps(
            {1: 1, 3: -8, -1: 6, -2: self.private_key.public_key().public_bytes_raw()}
        )

    def _authenticator_data(self, party: str, flags: int, credential_data: bytes = b"") -> bytes:
        self.sign_count += self.increments_sign_count
        sign_count = self.sign_count.to_bytes(4, "big")
        return (
            hashlib.sha256(party.encode()).digest() + bytes([flags]) + sign_count + credential_data
        )

    def create_credential(
        self,
        options: dict[str, Any],
        *,
        party: str = RELYING_PARTY_ID,
        origin: str = ORIGIN,
        **client_data_changes: Any,
    ) -> dict[str, Any]:
        """The result of `navigator.credentials.create`: a response to a registration challenge."""
        client_data = _client_data("webauthn.create", options, origin, client_data_changes)
        credential_data = (
            bytes(16)
            + len(self.credential_id).to_bytes(2, "big")
            + self.credential_id
            + self._cose_key()
        )
        authenticator_data = self._authenticator_data(
            party, USER_PRESENT | USER_VERIFIED | ATTESTED_CREDENTIAL_DATA, credential_data
        )
        attestation_object = cbor2.dumps(
            {"fmt": "none", "attStmt": {}, "authData": authenticator_data}
        )
        response = {
            "clientDataJSON": base64url_encode(client_data),
            "attestationObject": base64url_encode(attestation_object),
            "transports": ["usb", "nfc", "telepathy"],
        }
        return self._credential(response)

    def create_assertion(
        self,
        options: dict[str, Any],
        *,
        party: str = RELYING_PARTY_ID,
        origin: str = ORIGIN,
        handle: str | None = None,
        **client_data_changes: Any,
    ) -> dict[str, Any]:
        """The result of `navigator.credentials.get`: a response to an authentication challenge."""
        client_data = _client_data("webauthn.get", options, origin, client_data_changes)
        authenticator_data = self._authenticator_data(party, USER_PRESENT | USER_VERIFIED)
        signed_bytes = authenticator_data + hashlib.sha256(client_data).digest()
        if self.algorithm == "ES256":
            signature = self.private_key.sign(signed_bytes, ec.ECDSA(hashes.SHA256()))
        else:
            signature = self.private_key.sign(signed_bytes)
        response: dict[str, Any] = {
            "clientDataJSON": base64url_encode(client_data),
            "authenticatorData": base64url_encode(authenticator_data),
            "signature": base64url_encode(signature),
        }
        if handle:
            response["userHandle"] = base64url_encode(handle.encode())
        return self._credential(response)

    def _credential(self, response: dict[str, Any]) -> dict[str, Any]:
        credential_id = base64url_encode(self.credential_id)
        return {
            "id": credential_id,
            "rawId": credential_id,
            "type": "public-key",
            "response": response,
        }


def _client_data(
    client_data_type: str, options: dict[str, Any], origin: str, changes: dict[str, Any]
) -> bytes:
    client_data = {
        "type": client_data_type,
        "challenge": options["challenge"],
        "origin": origin,
        **changes,
    }
    return json.dumps(client_data).encode()


async def request_challenge(client: GraphQLClient, ceremony: str, **options: Any) -> dict[str, Any]:
    """Request a challenge and return its options."""
    input_values = {"ceremony": ceremony, **options}
    payload = (await client(WEBAUTHN_CHALLENGE_MUTATION, input=input_values))["webauthnChallenge"]
    assert payload["errors"] == []
    challenge: dict[str, Any] = payload["challenge"]
    return challenge


async def make_registration_response(
    client: GraphQLClient, key: SoftwareAuthenticator, **changes: Any
) -> dict[str, Any]:
    """Request a registration challenge and return the authenticator's response."""
    return key.create_credential(await request_challenge(client, "REGISTRATION"), **changes)


async def make_assertion_response(
    client: GraphQLClient, key: SoftwareAuthenticator, **changes: Any
) -> dict[str, Any]:
    """Request an authentication challenge and return the authenticator's response."""
    return key.create_assertion(await request_challenge(client, "AUTHENTICATION"), **changes)


async def register_security_key(
    client: GraphQLClient, algorithm: str = "ES256", **proof: Any
) -> SoftwareAuthenticator:
    """Register a new security key."""
    key = SoftwareAuthenticator(algorithm)
    input_values = {
        "name": "Blue",
        "response": await make_registration_response(client, key),
        **proof,
    }
    payload = (await client(WEBAUTHN_REGISTER_MUTATION, input=input_values))["webauthnRegister"]
    assert payload["errors"] == [], payload
    key.node_id = payload["webauthnKey"]["id"]
    return key

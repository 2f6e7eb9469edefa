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
from tests.conftest import Client

RELYING_PARTY_ID, ORIGIN = "mail.example.org", "https://mail.example.org"
# flags of authenticator data
USER_PRESENT, USER_VERIFIED, ATTESTED_CREDENTIAL_DATA = 0x01, 0x04, 0x40


def document(name: str, fields: str = "") -> str:
    """A mutation that takes its input from the variable `$input`."""
    input_type = "IdsInput" if name == "appPasswordDelete" else f"{name[0].upper()}{name[1:]}Input"
    return (
        f"mutation ($input: {input_type}!) {{ {name}(input: $input) "
        f"{{ {fields} errors {{ code message path index }} }} }}"
    )


TOTP_SETUP_MUTATION = document("totpSetup", "seed otpauthUrl qrCode")
TOTP_ENABLE_MUTATION = document("totpEnable", "recoveryCodes user { enabled2fa }")
WEBAUTHN_CHALLENGE_MUTATION = document("webauthnChallenge", "challenge")
WEBAUTHN_REGISTER_MUTATION = document(
    "webauthnRegister", "webauthnKey { id name } recoveryCodes user { enabled2fa }"
)


def code_of(world: Environment, secret: str, steps: int = 0) -> str:
    """The TOTP code of now, or of `steps` time steps later."""
    key_bytes = totp.decode_secret(secret)
    return totp.code_at(
        key_bytes, totp.step_at(world.now() + timedelta(seconds=steps * totp.STEP_SECONDS))
    )


async def seed_of(client: Client) -> str:
    """Create a TOTP secret. TOTP is not enabled yet."""
    payload = (await client(TOTP_SETUP_MUTATION, input={}))["totpSetup"]
    assert payload["errors"] == []
    secret: str = payload["seed"]
    return secret


async def totp_on(client: Client) -> tuple[str, list[str]]:
    """Enable TOTP with the current code; return the TOTP secret and the recovery codes."""
    secret = await seed_of(client)
    input_values = {"token": code_of(client.world, secret)}
    payload = (await client(TOTP_ENABLE_MUTATION, input=input_values))["totpEnable"]
    assert payload["errors"] == []
    return secret, payload["recoveryCodes"]


async def code_on(client: Client) -> str:
    """Enable TOTP and return the next valid code."""
    secret, _ = await totp_on(client)
    return code_of(client.world, secret, 1)


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def unpacked(encoded: str) -> bytes:
    return base64.urlsafe_b64decode(encoded + "===")


@dataclass
class SoftKey:
    """A WebAuthn authenticator with one credential (W3C Web Authentication)."""

    algorithm: str = "ES256"
    id: bytes = field(default_factory=lambda: hashlib.sha256(str(id(object())).encode()).digest())
    count: int = 0
    counts: bool = True
    global_id: str = ""
    private: Any = None

    def __post_init__(self) -> None:
        if self.algorithm == "ES256":
            self.private = ec.generate_private_key(ec.SECP256R1())
        else:
            self.private = ed25519.Ed25519PrivateKey.generate()
        self.id = hashlib.sha256(self._cose_key()).digest()

    def _cose_key(self) -> bytes:
        """The public key as a COSE_Key (RFC 9052)."""
        if self.algorithm == "ES256":
            point = self.private.public_key().public_numbers()
            x, y = point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big")
            return cbor2.dumps({1: 2, 3: -7, -1: 1, -2: x, -3: y})
        return cbor2.dumps({1: 1, 3: -8, -1: 6, -2: self.private.public_key().public_bytes_raw()})

    def _authenticator_data(self, party: str, flags: int, credential_data: bytes = b"") -> bytes:
        self.count += self.counts
        sign_count = self.count.to_bytes(4, "big")
        return (
            hashlib.sha256(party.encode()).digest() + bytes([flags]) + sign_count + credential_data
        )

    def create(
        self,
        options: dict[str, Any],
        *,
        party: str = RELYING_PARTY_ID,
        origin: str = ORIGIN,
        **client_data_changes: Any,
    ) -> dict[str, Any]:
        """The result of `navigator.credentials.create`: a response to a registration challenge."""
        client_data = _client_data("webauthn.create", options, origin, client_data_changes)
        credential_data = bytes(16) + len(self.id).to_bytes(2, "big") + self.id + self._cose_key()
        authenticator_data = self._authenticator_data(
            party, USER_PRESENT | USER_VERIFIED | ATTESTED_CREDENTIAL_DATA, credential_data
        )
        attestation_object = cbor2.dumps(
            {"fmt": "none", "attStmt": {}, "authData": authenticator_data}
        )
        response = {
            "clientDataJSON": base64url(client_data),
            "attestationObject": base64url(attestation_object),
            "transports": ["usb", "nfc", "telepathy"],
        }
        return self._credential(response)

    def get(
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
            signature = self.private.sign(signed_bytes, ec.ECDSA(hashes.SHA256()))
        else:
            signature = self.private.sign(signed_bytes)
        response: dict[str, Any] = {
            "clientDataJSON": base64url(client_data),
            "authenticatorData": base64url(authenticator_data),
            "signature": base64url(signature),
        }
        if handle:
            response["userHandle"] = base64url(handle.encode())
        return self._credential(response)

    def _credential(self, response: dict[str, Any]) -> dict[str, Any]:
        credential_id = base64url(self.id)
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


async def challenged(client: Client, ceremony: str, **options: Any) -> dict[str, Any]:
    """Request a challenge and return its options."""
    input_values = {"ceremony": ceremony, **options}
    payload = (await client(WEBAUTHN_CHALLENGE_MUTATION, input=input_values))["webauthnChallenge"]
    assert payload["errors"] == []
    challenge: dict[str, Any] = payload["challenge"]
    return challenge


async def made(client: Client, key: SoftKey, **changes: Any) -> dict[str, Any]:
    """Request a registration challenge and return the authenticator's response."""
    return key.create(await challenged(client, "REGISTRATION"), **changes)


async def signed(client: Client, key: SoftKey, **changes: Any) -> dict[str, Any]:
    """Request an authentication challenge and return the authenticator's response."""
    return key.get(await challenged(client, "AUTHENTICATION"), **changes)


async def key_on(client: Client, algorithm: str = "ES256", **proof: Any) -> SoftKey:
    """Register a new security key."""
    key = SoftKey(algorithm)
    input_values = {"name": "Blue", "response": await made(client, key), **proof}
    payload = (await client(WEBAUTHN_REGISTER_MUTATION, input=input_values))["webauthnRegister"]
    assert payload["errors"] == [], payload
    key.global_id = payload["webauthnKey"]["id"]
    return key

"""Second factors as people have them: an authenticator for codes, and security keys."""

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

PARTY, ORIGIN = "mail.example.org", "https://mail.example.org"
PRESENT, VERIFIED, ATTESTED = 0x01, 0x04, 0x40  # flags of authenticator data


def document(name: str, payload: str = "") -> str:
    """A mutation with its input in `$input`."""
    kind = "IdsInput" if name == "appPasswordDelete" else f"{name[0].upper()}{name[1:]}Input"
    return (
        f"mutation ($input: {kind}!) {{ {name}(input: $input) "
        f"{{ {payload} errors {{ code message path index }} }} }}"
    )


SETUP = document("totpSetup", "seed otpauthUrl qrCode")
ENABLE = document("totpEnable", "recoveryCodes user { enabled2fa }")
CHALLENGE = document("webauthnChallenge", "challenge")
REGISTER = document("webauthnRegister", "webauthnKey { id name } recoveryCodes user { enabled2fa }")


def code_of(world: Environment, seed: str, steps: int = 0) -> str:
    """What an authenticator shows, so many steps from now."""
    raw = totp.decode_secret(seed)
    return totp.code_at(
        raw, totp.step_at(world.now() + timedelta(seconds=steps * totp.STEP_SECONDS))
    )


async def seed_of(client: Client) -> str:
    """A new seed, which nothing is on by."""
    done = (await client(SETUP, input={}))["totpSetup"]
    assert done["errors"] == []
    seed: str = done["seed"]
    return seed


async def totp_on(client: Client) -> tuple[str, list[str]]:
    """Codes by time turned on; the seed, and the recovery codes. The present code is spent."""
    seed = await seed_of(client)
    given = {"token": code_of(client.world, seed)}
    done = (await client(ENABLE, input=given))["totpEnable"]
    assert done["errors"] == []
    return seed, done["recoveryCodes"]


async def code_on(client: Client) -> str:
    """Codes by time turned on; one that is good."""
    seed, _ = await totp_on(client)
    return code_of(client.world, seed, 1)


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def unpacked(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "===")


@dataclass
class SoftKey:
    """An authenticator with one credential, as W3C Web Authentication has it."""

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
        self.id = hashlib.sha256(self._cose()).digest()

    def _cose(self) -> bytes:
        """The public key (RFC 9052)."""
        if self.algorithm == "ES256":
            place = self.private.public_key().public_numbers()
            x, y = place.x.to_bytes(32, "big"), place.y.to_bytes(32, "big")
            return cbor2.dumps({1: 2, 3: -7, -1: 1, -2: x, -3: y})
        return cbor2.dumps({1: 1, 3: -8, -1: 6, -2: self.private.public_key().public_bytes_raw()})

    def _data(self, party: str, flags: int, attested: bytes = b"") -> bytes:
        self.count += self.counts
        count = self.count.to_bytes(4, "big")
        return hashlib.sha256(party.encode()).digest() + bytes([flags]) + count + attested

    def create(
        self, options: dict[str, Any], *, party: str = PARTY, origin: str = ORIGIN, **client: Any
    ) -> dict[str, Any]:
        """What `navigator.credentials.create` gives."""
        said = _client("webauthn.create", options, origin, client)
        attested = bytes(16) + len(self.id).to_bytes(2, "big") + self.id + self._cose()
        data = self._data(party, PRESENT | VERIFIED | ATTESTED, attested)
        made = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        response = {
            "clientDataJSON": base64url(said),
            "attestationObject": base64url(made),
            "transports": ["usb", "nfc", "telepathy"],
        }
        return self._credential(response)

    def get(
        self,
        options: dict[str, Any],
        *,
        party: str = PARTY,
        origin: str = ORIGIN,
        handle: str | None = None,
        **client: Any,
    ) -> dict[str, Any]:
        """What `navigator.credentials.get` gives."""
        said = _client("webauthn.get", options, origin, client)
        data = self._data(party, PRESENT | VERIFIED)
        signed = data + hashlib.sha256(said).digest()
        if self.algorithm == "ES256":
            signature = self.private.sign(signed, ec.ECDSA(hashes.SHA256()))
        else:
            signature = self.private.sign(signed)
        response: dict[str, Any] = {
            "clientDataJSON": base64url(said),
            "authenticatorData": base64url(data),
            "signature": base64url(signature),
        }
        if handle:
            response["userHandle"] = base64url(handle.encode())
        return self._credential(response)

    def _credential(self, response: dict[str, Any]) -> dict[str, Any]:
        name = base64url(self.id)
        return {"id": name, "rawId": name, "type": "public-key", "response": response}


def _client(kind: str, options: dict[str, Any], origin: str, changed: dict[str, Any]) -> bytes:
    told = {"type": kind, "challenge": options["challenge"], "origin": origin, **changed}
    return json.dumps(told).encode()


async def challenged(client: Client, ceremony: str, **given: Any) -> dict[str, Any]:
    """The options of a challenge."""
    asked = {"ceremony": ceremony, **given}
    done = (await client(CHALLENGE, input=asked))["webauthnChallenge"]
    assert done["errors"] == []
    options: dict[str, Any] = done["challenge"]
    return options


async def made(client: Client, key: SoftKey, **how: Any) -> dict[str, Any]:
    """An answer to a new challenge for registration."""
    return key.create(await challenged(client, "REGISTRATION"), **how)


async def signed(client: Client, key: SoftKey, **how: Any) -> dict[str, Any]:
    """An answer to a new challenge for authentication."""
    return key.get(await challenged(client, "AUTHENTICATION"), **how)


async def key_on(client: Client, algorithm: str = "ES256", **proof: Any) -> SoftKey:
    """A security key that is registered."""
    key = SoftKey(algorithm)
    given = {"name": "Blue", "response": await made(client, key), **proof}
    done = (await client(REGISTER, input=given))["webauthnRegister"]
    assert done["errors"] == [], done
    key.global_id = done["webauthnKey"]["id"]
    return key

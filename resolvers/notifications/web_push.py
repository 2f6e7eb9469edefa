"""Web Push: encrypted requests to the push service of a browser (RFC 8030).

The body is encrypted (RFC 8291) and signed with the platform's key pair (RFC 8292).
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from mail.network.outbound_http import Target, target
from models.errors import Invalid
from models.notifications.push_channels import PushKey
from models.runtime.environment import World
from models.store.columns import insert_or, picked

ONLY = 1  # the table has one row
SIGNED_FOR = timedelta(hours=12)  # RFC 8292, section 2: at most 24 hours
KEPT_FOR = timedelta(days=1)  # of a message in the push service
POINT, AUTH = 65, 16  # bytes (RFC 8291, sections 3.1 and 3.2)
PATH = ("endpoint",)


@dataclass(frozen=True, slots=True)
class Pair:
    """The key pair of the platform, each key in base64url."""

    public: str
    private: str


def place_of(key: int) -> str:
    """Return the purpose that the secret box binds the private key to."""
    return f"push key:{key}"


async def public_key(world: World) -> str:
    """Read the public key. The first call creates the key pair."""
    found = await _row(world)
    if found is None:
        await _make(world)
        found = await _row(world)
    return str(found.public)


async def pair(world: World) -> Pair:
    """Read the key pair. Raises DecryptionError if the private key can't be decrypted."""
    await public_key(world)
    row = await _row(world)
    return Pair(row.public, world.vault.open(row.private, place_of(ONLY)))


async def _row(world: World) -> Any:
    return next(iter(await world.database.read(select(*picked(PushKey)))), None)


async def _make(world: World) -> None:
    """Create the key pair, unless another process does at the same time."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - few need it
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    number = key.private_numbers().private_value.to_bytes(32, "big")
    point = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    row = {
        "id": ONLY,
        "public": _written(point),
        "private": world.vault.seal(_written(number), place_of(ONLY)),
        "created_at": world.now(),
    }
    async with world.write() as session:
        new = insert_or(world.database.dialect, PushKey).on_conflict_do_nothing()
        await (await session.connection()).execute(new, row)


def _written(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _read(text: object, size: int, name: str) -> bytes:
    """Decode a key from base64url. Raises Invalid if it does not have this size."""
    raw = b""
    if isinstance(text, str) and len(text) <= 2 * size:
        try:
            bare = text.rstrip("=")
            raw = base64.b64decode(bare + "=" * (-len(bare) % 4), b"-_", validate=True)
        except (ValueError, binascii.Error):
            raw = b""
    if len(raw) != size:
        raise Invalid(f"{name} has {size} bytes", constraint="format", path=PATH)
    return raw


def checked(given: object, *, private: bool) -> dict[str, Any]:
    """Return the known fields of a browser's push subscription. Raises Invalid if one is wrong."""
    if not isinstance(given, Mapping) or not isinstance(given.get("endpoint"), str):
        text = "what PushSubscription.toJSON() says: endpoint and keys"
        raise Invalid(text, constraint="format", path=PATH)
    keys = given.get("keys")
    if not isinstance(keys, Mapping):
        raise Invalid("there are no keys", constraint="format", path=PATH)
    to = target(given["endpoint"], private=private, path=PATH)
    if not to.secure:
        raise Invalid("https only (RFC 8030, section 8)", constraint="url", path=PATH)
    if ":" in to.host:
        raise Invalid("a host by its name", constraint="url", path=PATH)
    point, auth = _read(keys.get("p256dh"), POINT, "p256dh"), _read(keys.get("auth"), AUTH, "auth")
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise Invalid("p256dh is no point of P-256", constraint="format", path=PATH) from None
    return {
        "endpoint": given["endpoint"],
        "keys": {"p256dh": _written(point), "auth": _written(auth)},
    }


async def request(
    world: World, subscription: Mapping[str, Any], to: Target, payload: bytes, *, urgent: bool
) -> tuple[dict[str, str], bytes]:
    """Return header fields and body for a payload of at most 3,900 bytes.

    Raises DecryptionError.
    """
    keys = await pair(world)
    claims = {
        "aud": f"https://{to.authority}",
        "exp": int((world.now() + SIGNED_FOR).timestamp()),
        "sub": world.options.push_contact or f"mailto:postmaster@{world.options.hostname}",
    }
    signed, body = await asyncio.to_thread(_sealed, subscription, payload, keys.private, claims)
    fields = {
        "Content-Type": "application/octet-stream",
        "Content-Encoding": "aes128gcm",
        "TTL": str(int(KEPT_FOR.total_seconds())),
        "Urgency": "high" if urgent else "normal",
        "Authorization": signed,
    }
    return fields, body


def _sealed(
    subscription: Mapping[str, Any], payload: bytes, private: str, claims: Mapping[str, Any]
) -> tuple[str, bytes]:
    # These packages import two HTTP clients, which most installations don't need.
    from py_vapid import Vapid02  # noqa: PLC0415
    from pywebpush import WebPusher  # noqa: PLC0415

    body: bytes = WebPusher(subscription).encode(payload)["body"]
    signer = Vapid02.from_raw(private.encode())
    signer.conf = {"no-strict": True}  # accepts a host without a dot
    signed: str = signer.sign(claims)["Authorization"]
    return signed, body

"""Web Push: encrypted requests to the push service of a browser (RFC 8030).

The body is encrypted (RFC 8291) and signed with the platform's key pair (RFC 8292).
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import select

from mail.network.outbound_http import HttpTarget, parse_http_target
from models.base64url import encode_base64url
from models.errors import InvalidInput
from models.notifications.push_channels import VapidKeyPair
from models.runtime.environment import Environment
from models.store.columns import insert_with_conflict, select_columns
from models.validation_constraints import ValidationConstraint

KEY_ROW_ID = 1  # the table has one row
SIGNATURE_LIFETIME = timedelta(hours=12)  # RFC 8292, section 2: at most 24 hours
MESSAGE_TTL = timedelta(days=1)  # of a message in the push service
POINT_SIZE, AUTH_SIZE = 65, 16  # bytes (RFC 8291, sections 3.1 and 3.2)
INPUT_PATH = ("endpoint",)


@dataclass(frozen=True, slots=True)
class VapidKeys:
    """The key pair of the platform, each key in base64url."""

    public: str
    private: str


def secret_purpose(row_id: int) -> str:
    """Return the purpose that the secret box binds the private key to."""
    return f"push key:{row_id}"


async def get_or_create_public_key(environment: Environment) -> str:
    """Read the public key. The first call creates the key pair."""
    key_row = await _read_key_row(environment)
    if key_row is None:
        await _create_vapid_key_pair_if_missing(environment)
        key_row = await _read_key_row(environment)
    return str(key_row.public)


async def get_or_create_key_pair(environment: Environment) -> VapidKeys:
    """Read the key pair. Raises DecryptionError if the private key can't be decrypted."""
    await get_or_create_public_key(environment)
    row = await _read_key_row(environment)
    return VapidKeys(
        row.public, environment.secret_box.decrypt(row.private, secret_purpose(KEY_ROW_ID))
    )


async def _read_key_row(environment: Environment) -> Any:
    return next(iter(await environment.database.read(select(*select_columns(VapidKeyPair)))), None)


async def _create_vapid_key_pair_if_missing(environment: Environment) -> None:
    """Create the key pair, unless another process does at the same time."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - few need it
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    private_key = ec.generate_private_key(ec.SECP256R1())
    number = private_key.private_numbers().private_value.to_bytes(32, "big")
    point = private_key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    row = {
        "id": KEY_ROW_ID,
        "public": encode_base64url(point),
        "private": environment.secret_box.encrypt(
            encode_base64url(number), secret_purpose(KEY_ROW_ID)
        ),
        "created_at": environment.now(),
    }
    async with environment.write_session() as session:
        new = insert_with_conflict(
            environment.database.dialect, VapidKeyPair
        ).on_conflict_do_nothing()
        await (await session.connection()).execute(new, row)


def _decode_subscription_key(text: object, size: int, name: str) -> bytes:
    """Decode a key from base64url. Raises InvalidInput if it does not have this size."""
    raw = b""
    if isinstance(text, str) and len(text) <= 2 * size:
        try:
            bare = text.rstrip("=")
            raw = base64.b64decode(bare + "=" * (-len(bare) % 4), b"-_", validate=True)
        except (ValueError, binascii.Error):
            raw = b""
    if len(raw) != size:
        raise InvalidInput(
            f"`{name}` has a wrong length: {size} bytes.",
            constraint=ValidationConstraint.FORMAT,
            path=INPUT_PATH,
        )
    return raw


def validate_subscription(subscription: object, *, allow_private: bool) -> dict[str, Any]:
    """Return the known fields of a browser's push subscription.

    Raises InvalidInput if one is wrong.
    """
    if not isinstance(subscription, Mapping) or not isinstance(subscription.get("endpoint"), str):
        text = "Must be a result of PushSubscription.toJSON(), with `endpoint` and `keys`."
        raise InvalidInput(text, constraint=ValidationConstraint.FORMAT, path=INPUT_PATH)
    keys = subscription.get("keys")
    if not isinstance(keys, Mapping):
        raise InvalidInput(
            "The subscription has no keys.", constraint=ValidationConstraint.FORMAT, path=INPUT_PATH
        )
    endpoint = parse_http_target(
        subscription["endpoint"], allow_private=allow_private, error_path=INPUT_PATH
    )
    if not endpoint.uses_tls:
        raise InvalidInput(
            "The endpoint must begin with `https://` (RFC 8030, section 8).",
            constraint=ValidationConstraint.URL,
            path=INPUT_PATH,
        )
    if ":" in endpoint.host:
        raise InvalidInput(
            "The endpoint must contain a host name.",
            constraint=ValidationConstraint.URL,
            path=INPUT_PATH,
        )
    point = _decode_subscription_key(keys.get("p256dh"), POINT_SIZE, "p256dh")
    auth = _decode_subscription_key(keys.get("auth"), AUTH_SIZE, "auth")
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise InvalidInput(
            "`p256dh` is not a point of P-256.",
            constraint=ValidationConstraint.FORMAT,
            path=INPUT_PATH,
        ) from None
    return {
        "endpoint": subscription["endpoint"],
        "keys": {"p256dh": encode_base64url(point), "auth": encode_base64url(auth)},
    }


class EncryptedPushRequest(NamedTuple):
    """Header fields and encrypted body of a Web Push request."""

    header_fields: dict[str, str]
    body: bytes


async def encrypt_and_build_push_request(
    environment: Environment,
    subscription: Mapping[str, Any],
    endpoint: HttpTarget,
    payload: bytes,
    *,
    is_urgent: bool,
) -> EncryptedPushRequest:
    """Return header fields and body for a payload of at most 3,900 bytes.

    Raises DecryptionError.
    """
    key_pair = await get_or_create_key_pair(environment)
    claims = {
        "aud": f"https://{endpoint.authority}",
        "exp": int((environment.now() + SIGNATURE_LIFETIME).timestamp()),
        "sub": environment.options.push_contact
        or f"mailto:postmaster@{environment.options.hostname}",
    }
    signed, body = await asyncio.to_thread(
        _encrypt_and_sign, subscription, payload, key_pair.private, claims
    )
    fields = {
        "Content-Type": "application/octet-stream",
        "Content-Encoding": "aes128gcm",
        "TTL": str(int(MESSAGE_TTL.total_seconds())),
        "Urgency": "high" if is_urgent else "normal",
        "Authorization": signed,
    }
    return EncryptedPushRequest(fields, body)


class _SignedPush(NamedTuple):
    """The Authorization field and the encrypted body of a Web Push request."""

    authorization: str
    body: bytes


def _encrypt_and_sign(
    subscription: Mapping[str, Any], payload: bytes, private_key: str, claims: Mapping[str, Any]
) -> _SignedPush:
    # These packages import two HTTP clients, which most installations don't need.
    from py_vapid import Vapid02  # noqa: PLC0415
    from pywebpush import WebPusher  # noqa: PLC0415

    body: bytes = WebPusher(subscription).encode(payload)["body"]
    signer = Vapid02.from_raw(private_key.encode())
    signer.conf = {"no-strict": True}  # accepts a host without a dot
    signed: str = signer.sign(claims)["Authorization"]
    return _SignedPush(signed, body)

"""Keys that sign ID tokens: create them, rotate them, and publish their public parts.

A new key is published a day before it signs. A replaced key stays published until the tokens that
it signed have expired. After that it is stored for the hints of clients (`id_token_hint`), which
can be expired ID tokens. Private keys are encrypted by the secret box.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from joserfc.jwk import ECKey
from sqlalchemy import Connection, insert, or_, select, update
from sqlmodel import col

from models.events.journal import PLATFORM
from models.oauth.tables import OauthSigningKey
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, select_columns
from models.store.database import Database

ALGORITHM = "ES256"
ID_TOKEN_LIFETIME = timedelta(hours=1)
ROTATION_INTERVAL = timedelta(days=90)
PUBLICATION_LEAD = timedelta(days=1)  # a new key is published this long before it signs
CACHE_LIFETIME = timedelta(minutes=1)
MAX_KID_LENGTH = 128  # characters


def encryption_context(key_id: int) -> str:
    """Return the context that the private key of a row is encrypted for."""
    return f"oauth signing key:{key_id}"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key that signs ID tokens now."""

    kid: str
    private_key: ECKey = field(repr=False)


@dataclass(slots=True)
class CachedSigningKeys:
    """The signing key and the published keys as they were read at a time."""

    read_at: datetime | None = None
    row_id: int = 0
    signing_key: SigningKey | None = None
    public_keys: list[dict[str, Any]] = field(default_factory=list)


@lru_cache(maxsize=4)
def _cache_of_database(_database: Database) -> CachedSigningKeys:
    return CachedSigningKeys()


async def load_or_create_signing_key(environment: Environment) -> SigningKey:
    """Return the key that signs now.

    Creates the first key, and the next key if the present one is due for rotation. Raises
    DecryptionError if the encryption key of the stored key is missing.
    """
    cache = await _load_cached_or_stored_signing_keys(environment)
    if cache.signing_key is None:
        raise RuntimeError("No signing key is active.")
    return cache.signing_key


async def load_published_keys(environment: Environment) -> list[dict[str, Any]]:
    """Return the public keys as JWKs: the next one, the present one and replaced ones.

    Creates a key if one is due.
    """
    return (await _load_cached_or_stored_signing_keys(environment)).public_keys


async def load_public_key(environment: Environment, kid: str) -> dict[str, Any] | None:
    """Return a public key as JWK by its identifier, also a replaced one; None if it is unknown."""
    if len(kid) > MAX_KID_LENGTH or not kid.isascii() or "\0" in kid:
        return None
    statement = select(col(OauthSigningKey.public_key)).where(col(OauthSigningKey.kid) == kid)
    for row in await environment.database.read(statement):
        return dict(row.public_key)
    return None


async def _load_cached_or_stored_signing_keys(environment: Environment) -> CachedSigningKeys:
    """Return the cached keys. After CACHE_LIFETIME, read them again and create a key if one is due.

    Raises DecryptionError.
    """
    cache, now = _cache_of_database(environment.database), environment.now()
    if cache.read_at and cache.read_at <= now < cache.read_at + CACHE_LIFETIME:
        return cache
    rows = await environment.database.read(_published_keys_sql(now))
    if _is_new_key_due(rows, now):
        rows = await environment.run_transaction(_create_key_if_due_and_load_published, PLATFORM)
        now = environment.now()  # not before the activation of a key that was just created
    row = _active_row(rows, now)
    if row is not None and row.id != cache.row_id:
        text = environment.secret_box.decrypt(row.private_key, encryption_context(row.id))
        cache.signing_key = SigningKey(row.kid, ECKey.import_key(json.loads(text)))
        cache.row_id = row.id
    cache.public_keys = [row.public_key for row in rows]
    cache.read_at = now
    return cache


def _published_keys_sql(now: datetime) -> Any:
    retires_at = col(OauthSigningKey.retires_at)
    statement = select(*select_columns(OauthSigningKey))
    return statement.where(or_(retires_at.is_(None), retires_at > now)).order_by(
        col(OauthSigningKey.activates_at).desc(), col(OauthSigningKey.id).desc()
    )


def _active_row(rows: Sequence[ColumnRow], now: datetime) -> ColumnRow | None:
    """Return the newest key that is active; the rows are sorted by activation, newest first."""
    return next((row for row in rows if row.activates_at <= now), None)


def _is_new_key_due(rows: Sequence[ColumnRow], now: datetime) -> bool:
    """True if no key is active, or if the successor of the newest key must be published."""
    if _active_row(rows, now) is None:
        return True
    return bool(now >= rows[0].activates_at + ROTATION_INTERVAL - PUBLICATION_LEAD)


def _create_key_if_due_and_load_published(transaction: DatabaseTransaction) -> Sequence[ColumnRow]:
    """Create a key unless another process has done so; return the published keys."""
    connection, environment = transaction.connection, transaction.environment
    now = environment.now()
    rows = connection.execute(_published_keys_sql(now)).all()
    if not _is_new_key_due(rows, now):
        return rows
    activates_at = now if _active_row(rows, now) is None else now + PUBLICATION_LEAD
    _retire_other_keys(connection, activates_at + ID_TOKEN_LIFETIME + CACHE_LIFETIME)
    key, key_id = ECKey.generate_key("P-256"), environment.new_id()
    kid = key.thumbprint()
    public_key = {**key.as_dict(private=False), "kid": kid, "use": "sig", "alg": ALGORITHM}
    private_text = json.dumps(key.as_dict(private=True))
    connection.execute(
        insert(OauthSigningKey).values(
            id=key_id,
            kid=kid,
            public_key=public_key,
            private_key=environment.secret_box.encrypt(private_text, encryption_context(key_id)),
            created_at=now,
            activates_at=activates_at,
        )
    )
    return connection.execute(_published_keys_sql(now)).all()


def _retire_other_keys(connection: Connection, retires_at: datetime) -> None:
    """Set when the present keys are no longer published: after the last token they sign."""
    is_in_use = col(OauthSigningKey.retires_at).is_(None)
    connection.execute(update(OauthSigningKey).where(is_in_use).values(retires_at=retires_at))

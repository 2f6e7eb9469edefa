"""Tables of second factors."""

from sqlmodel import Field, SQLModel

from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    Timestamp,
    UserOwnedRow,
    foreign_key,
    json_column,
)


class TotpSecret(SQLModel, table=True):
    """The encrypted TOTP secrets of a user (models/runtime/secret_box.py)."""

    __tablename__ = "totp_secrets"

    user_id: int = foreign_key("users.id", primary_key=True, index=False)
    seed: str | None = None  # in use
    pending: str | None = None  # shown to the user, and not confirmed yet
    pending_at: OptionalTimestamp = None
    last_step: OptionalInt64 = None  # of the last accepted code: no code is valid twice
    enabled_at: OptionalTimestamp = None


class RecoveryCode(UserOwnedRow, table=True):
    """A code that replaces a lost second factor. It is valid once."""

    __tablename__ = "recovery_codes"

    digest: str  # SHA-256 of the code, hex
    used_at: OptionalTimestamp = None
    created_at: Timestamp


class WebauthnKey(UserOwnedRow, table=True):
    """A security key or passkey."""

    __tablename__ = "webauthn_keys"

    name: str
    credential_id: str = Field(unique=True)  # base64url
    public_key: str  # COSE, base64url
    sign_count: Int64 = 0
    transports: list[str] = json_column(list)
    created_at: Timestamp
    last_used_at: OptionalTimestamp = None


class WebauthnChallenge(UserOwnedRow, table=True):
    """A WebAuthn challenge. It is valid once, for a limited time."""

    __tablename__ = "webauthn_challenges"

    challenge: str = Field(unique=True)  # base64url
    registers: bool  # true: registers a new key; false: signs in
    created_at: Timestamp

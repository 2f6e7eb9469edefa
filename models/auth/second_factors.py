"""Second factors."""

from sqlmodel import Field, SQLModel

from models.store.columns import MaybeMoment, MaybeNumber, Moment, Number, Owned, plain, ref


class TotpSeed(SQLModel, table=True):
    """Seeds for codes by time, sealed: models/runtime/secret_box.py."""

    __tablename__ = "totp_seeds"

    user_id: int = ref("users.id", primary_key=True, index=False)
    seed: str | None = None  # in use
    pending: str | None = None  # shown, and not yet proved
    pending_at: MaybeMoment = None
    last_step: MaybeNumber = None  # of the last code that was taken: no code works twice
    enabled_at: MaybeMoment = None


class RecoveryCode(Owned, table=True):
    """A code for whoever has lost the factor. Works once."""

    __tablename__ = "recovery_codes"

    digest: str  # SHA-256 of the code, hex
    used_at: MaybeMoment = None
    created_at: Moment


class WebauthnKey(Owned, table=True):
    """A security key, or a passkey."""

    __tablename__ = "webauthn_keys"

    name: str
    credential_id: str = Field(unique=True)  # base64url
    public_key: str  # COSE, base64url
    sign_count: Number = 0
    transports: list[str] = plain(list)
    created_at: Moment
    last_used_at: MaybeMoment = None


class WebauthnChallenge(Owned, table=True):
    """A challenge that was handed out. Good once, and for a while."""

    __tablename__ = "webauthn_challenges"

    challenge: str = Field(unique=True)  # base64url
    registers: bool  # a new key, or else signs in by one
    created_at: Moment

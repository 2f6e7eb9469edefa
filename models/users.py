"""Who has an account."""

from typing import Any

from sqlmodel import Field

from models.columns import MaybeMoment, MaybeNumber, Moment, Number, Row, choice, plain, ref
from models.roles import Role


class User(Row, table=True):
    """An account. Its journal is the stream of its id."""

    __tablename__ = "users"

    username: str  # lower case, as shown
    username_key: str = Field(unique=True)  # as compared: mail/addresses.py
    name: str | None = None
    role: Role = choice(Role, default=Role.USER)
    domain_id: int | None = ref("domains.id", ondelete="RESTRICT", default=None)
    tenant_id: Number  # whose blobs it shares; stays when the domain changes
    password: str | None = None  # Argon2id, PHC form
    require_password_change: bool = False
    auth_version: Number = 1  # tokens made under an older one have ended
    disabled: bool = False  # neither signs in nor receives
    suspended: bool = False  # does not sign in, still receives
    quota: MaybeNumber = None  # bytes; None: the domain's, 0: unlimited
    used: Number = 0  # bytes
    message_count: Number = 0
    uid_validity: Number = 0  # the last one given to a mailbox; rises by at least one
    language: str | None = None
    tags: list[str] = plain(list)
    meta_data: dict[str, Any] | None = plain()
    internal_data: dict[str, Any] | None = plain()
    created_at: Moment
    updated_at: Moment
    last_login_at: MaybeMoment = None

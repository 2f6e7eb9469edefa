"""Certificates of our own names: stored, found by name, and renewed by ACME (RFC 8555)."""

from sqlmodel import Field, SQLModel

from models.store.columns import (
    Big,
    MaybeMoment,
    MaybeNumber,
    Moment,
    Number,
    Row,
    lease_index,
    plain,
    ref,
)


class Certificate(Row, table=True):
    """A key and its certificate, served to whoever asks for a name.

    Until ACME has brought the first one there is neither.
    """

    __tablename__ = "certificates"
    __table_args__ = (lease_index("certificates"),)

    server_name: str = Field(unique=True)  # in ASCII, lower case
    alt_names: list[str] = plain(list)  # names in the certificate, in ASCII, lower case
    description: str | None = None
    chain: str | None = None  # PEM: its own first, then whoever signed the one before
    private_key: str | None = None  # PEM, sealed
    version: Number = 0  # counts changes of what is served
    sha1: str | None = None  # fingerprints of its own, in hex
    sha256: str | None = None
    spki: str | None = None  # SHA-256 of its public key, in hex: of TLSA 3 1 1
    issuer: str | None = None
    not_before: MaybeMoment = None
    not_after: MaybeMoment = Field(default=None, index=True)
    acme: bool = False
    acme_names: list[str] = plain(list)  # beside server_name ACME puts these into it, likewise
    acme_directory: str | None = None  # whose certificate it is; None: it was sent
    acme_renew_at: MaybeMoment = None  # ordered from then on; None: at the next step
    acme_state: str | None = None  # last step or error
    acme_next_at: MaybeMoment = Field(default=None, index=True)  # next step: a look, or an order
    acme_failures: Number = 0  # in a row
    lease: MaybeNumber = None  # of who takes the step
    holder: MaybeNumber = None  # the process that holds it; see models/runtime/leases.py
    created_at: Moment
    updated_at: Moment


class CertificateName(SQLModel, table=True):
    """A name that a certificate is good for: exact, or `*.` and what is below."""

    __tablename__ = "certificate_names"

    certificate_id: int = ref("certificates.id", primary_key=True, index=False)
    name: str = Field(primary_key=True, index=True)


class AcmeAccount(Row, table=True):
    """Our account at an ACME server."""

    __tablename__ = "acme_accounts"

    directory: str = Field(unique=True)  # its URL
    url: str | None = None  # of the account; None: not made yet
    private_key: str  # PEM, sealed
    created_at: Moment


class AcmeChallenge(SQLModel, table=True):
    """What an ACME server is to find at /.well-known/acme-challenge/ and the token."""

    __tablename__ = "acme_challenges"

    token: str = Field(primary_key=True)
    certificate_id: int = Field(
        foreign_key="certificates.id", ondelete="CASCADE", sa_type=Big, index=True
    )
    answer: str  # the key authorization
    expires_at: Moment = Field(index=True)

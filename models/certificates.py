"""Tables of TLS certificates of this server, and of their renewal by ACME (RFC 8555)."""

from enum import StrEnum

from sqlmodel import Field, SQLModel

from models.store.columns import (
    BIG_INTEGER,
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    enum_column,
    foreign_key,
    json_column,
    lease_index,
)


class AcmeState(StrEnum):
    """How far the order of a certificate is (RFC 8555)."""

    TERMS_NOT_AGREED = "TERMS_NOT_AGREED"  # nothing is ordered until the operator agrees
    WAITING = "WAITING"
    ORDERING = "ORDERING"
    VALIDATING = "VALIDATING"  # the authority checks the challenges
    ISSUING = "ISSUING"
    VALID = "VALID"
    FAILED = "FAILED"
    REVOKED = "REVOKED"  # only until the certificate is deleted or renewed


class Certificate(RowWithId, table=True):
    """A private key and its certificate, served for a server name.

    Until ACME has issued the first certificate, both are absent.
    """

    __tablename__ = "certificates"
    __table_args__ = (lease_index("certificates"),)

    server_name: str = Field(unique=True)  # in ASCII, lower case
    alt_names: list[str] = json_column(list)  # names in the certificate, in ASCII, lower case
    description: str | None = None
    chain: str | None = None  # PEM: its own certificate first, then the issuers in order
    private_key: str | None = None  # PEM, encrypted
    version: Int64 = 0  # counts changes of the key or chain
    sha1: str | None = None  # fingerprints of its own, in hex
    sha256: str | None = None
    spki: str | None = None  # SHA-256 of its public key, in hex: of TLSA 3 1 1
    issuer: str | None = None
    not_before: OptionalTimestamp = None
    not_after: OptionalTimestamp = Field(default=None, index=True)
    acme: bool = False
    # names besides server_name for ACME, in ASCII, lower case
    acme_names: list[str] = json_column(list)
    acme_directory: str | None = None  # of the issuer; None: the certificate was uploaded
    acme_renew_at: OptionalTimestamp = None  # start of the renewal; None: at the next step
    acme_state: AcmeState | None = enum_column(AcmeState, default=None, nullable=True)
    acme_error: str | None = None  # text of the last failure; None: no failure since a success
    # next step: a check, or an order
    acme_next_at: OptionalTimestamp = Field(default=None, index=True)
    acme_failures: Int64 = 0  # in a row
    lease: OptionalInt64 = None  # number of the current lease
    holder: OptionalInt64 = None  # the process with the lease; see models/runtime/leases.py
    created_at: Timestamp
    updated_at: Timestamp


class CertificateName(SQLModel, table=True):
    """A name that a certificate is valid for: exact, or `*.` and a domain."""

    __tablename__ = "certificate_names"

    certificate_id: int = foreign_key("certificates.id", primary_key=True, index=False)
    name: str = Field(primary_key=True, index=True)


class AcmeAccount(RowWithId, table=True):
    """The account of this server at an ACME server."""

    __tablename__ = "acme_accounts"

    directory: str = Field(unique=True)  # its URL
    url: str | None = None  # of the account; None: not created yet
    private_key: str  # PEM, encrypted
    created_at: Timestamp


class AcmeChallenge(SQLModel, table=True):
    """The response to an ACME server at /.well-known/acme-challenge/ and the token."""

    __tablename__ = "acme_challenges"

    token: str = Field(primary_key=True)
    certificate_id: int = Field(
        foreign_key="certificates.id", ondelete="CASCADE", sa_type=BIG_INTEGER, index=True
    )
    answer: str  # the key authorization
    expires_at: Timestamp = Field(index=True)

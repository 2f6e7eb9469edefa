"""Tables of relay hosts, transports, TLS policies and forwarding hosts."""

from enum import StrEnum

from sqlmodel import Field

from models.store.columns import Int64, OptionalTimestamp, RowWithId, Timestamp, enum_column


class TlsPolicyLevel(StrEnum):
    """The TLS requirement of a destination."""

    NONE = "NONE"
    MAY = "MAY"
    ENCRYPT = "ENCRYPT"
    DANE = "DANE"
    DANE_ONLY = "DANE_ONLY"
    FINGERPRINT = "FINGERPRINT"
    VERIFY = "VERIFY"
    SECURE = "SECURE"


class RelayHost(RowWithId, table=True):
    """A server that sends the mail of the domains that use it."""

    __tablename__ = "relay_hosts"

    host: str  # lower case, or an address
    port: Int64 = 25
    username: str | None = None
    secret: str | None = None  # its password, encrypted
    tls: bool = True  # TLS with a verified certificate is required
    active: bool = True
    created_at: Timestamp


class Transport(RowWithId, table=True):
    """A route that is configured for a destination."""

    __tablename__ = "transports"

    destination: str = Field(unique=True)  # domain, .domain, address or /regular expression/
    next_hop: str  # host:port; [host] without MX lookup
    lookup_mx: bool = False  # `next_hop` is a domain
    username: str | None = None
    secret: str | None = None  # its password, encrypted
    active: bool = True
    created_at: Timestamp


class TlsPolicy(RowWithId, table=True):
    """The configured TLS requirement of a destination."""

    __tablename__ = "tls_policies"

    destination: str = Field(unique=True)  # domain, .domain or [host]:port
    level: TlsPolicyLevel = enum_column(TlsPolicyLevel)
    parameters: str | None = None  # such as match=, fingerprints
    active: bool = True
    created_at: Timestamp
    updated_at: OptionalTimestamp = None


class ForwardingHost(RowWithId, table=True):
    """An IP address that forwards mail to this server, so that SPF fails."""

    __tablename__ = "forwarding_hosts"

    host: str = Field(unique=True)  # IP address or network, in normal form
    source: str  # the name it was resolved from
    filter_spam: bool = False  # if false, its mail is never refused as spam
    created_at: Timestamp

"""Ways out of here: relay hosts of senders, transports and TLS policies of destinations.

And forwarding hosts, whose mail was somebody else's before it comes to us.
"""

from enum import StrEnum

from sqlmodel import Field

from models.store.columns import MaybeMoment, Moment, Number, Row, choice


class TlsPolicyLevel(StrEnum):
    """How much encryption the way to a destination has to have."""

    NONE = "NONE"
    MAY = "MAY"
    ENCRYPT = "ENCRYPT"
    DANE = "DANE"
    DANE_ONLY = "DANE_ONLY"
    FINGERPRINT = "FINGERPRINT"
    VERIFY = "VERIFY"
    SECURE = "SECURE"


class RelayHost(Row, table=True):
    """A way out for the mail of domains that name it."""

    __tablename__ = "relay_hosts"

    host: str  # lower case, or an address
    port: Number = 25
    username: str | None = None
    secret: str | None = None  # its password, sealed
    tls: bool = True  # nothing goes there without, and the certificate is checked
    active: bool = True
    created_at: Moment


class Transport(Row, table=True):
    """A way to a destination."""

    __tablename__ = "transports"

    destination: str = Field(unique=True)  # domain, .domain, address or /regular expression/
    next_hop: str  # host:port; [host] is not looked up as a domain
    lookup_mx: bool = False  # `next_hop` is a domain
    username: str | None = None
    secret: str | None = None  # its password, sealed
    active: bool = True
    created_at: Moment


class TlsPolicy(Row, table=True):
    """How much encryption a destination asks for."""

    __tablename__ = "tls_policies"

    destination: str = Field(unique=True)  # domain, .domain or [host]:port
    policy: TlsPolicyLevel = choice(TlsPolicyLevel)
    parameters: str | None = None  # such as match=, fingerprints
    active: bool = True
    created_at: Moment
    updated_at: MaybeMoment = None


class ForwardingHost(Row, table=True):
    """An address whose mail is forwarded to us, and so fails SPF."""

    __tablename__ = "forwarding_hosts"

    host: str = Field(unique=True)  # IP address or network, in normal form
    source: str  # the name it came from
    filter_spam: bool = False  # else its mail is never refused as spam
    created_at: Moment

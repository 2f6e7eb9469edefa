"""Settings of outgoing mail: next hop, DANE, connections and rates."""

from datetime import timedelta

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from merganser.settings.value_types import DEFAULT_OPTIONS, Duration


class OutgoingSettings(BaseSettings):
    """Settings of outgoing mail. Each is the variable `MERGANSER_` with the name in capitals."""

    next_hop: SecretStr | None = Field(
        default=None,
        description="Server that takes all mail that leaves: smtp://user:password@host:port or "
        "smtps://…, with ?tls=never or ?tls=required. Without it mail goes to each domain's own. "
        "Transports and relay hosts come before it.",
    )
    dns_validates: bool = Field(
        default=DEFAULT_OPTIONS.dns_validates,
        description="DNS_RESOLVER checks signatures (DNSSEC), and the way to it is safe, as on "
        "127.0.0.1: then what it says of the certificates of servers (DANE) is kept to.",
        json_schema_extra={"hint": "write on or off"},
    )
    mx_private: bool = Field(
        default=DEFAULT_OPTIONS.mx_private,
        description="Servers that DNS names for a domain may have private, loopback and link-local "
        "addresses, too. On, everybody who can send mail, or have it sent on, can make the server "
        "connect to port 25 in your own network. Relay hosts, transports, NEXT_HOP and domains "
        "with a backup MX here do not need it.",
        json_schema_extra={"hint": "write on or off"},
    )
    send_per_domain: int = Field(
        default=DEFAULT_OPTIONS.send_per_domain,
        ge=1,
        le=100,
        description="Connections at once to the servers of one domain, of each process.",
    )
    send_per_minute: int = Field(
        default=DEFAULT_OPTIONS.send_per_minute,
        ge=0,
        le=1_000_000,
        description="Messages in a minute to one domain, relay or next hop, of all processes "
        "together; 0: any number.",
    )
    send_connection_messages: int = Field(
        default=DEFAULT_OPTIONS.send_connection_messages,
        ge=1,
        le=10_000,
        description="Messages that are sent over one connection.",
    )
    send_connections_kept: int = Field(
        default=DEFAULT_OPTIONS.send_connections_kept,
        ge=0,
        le=100,
        description="Connections to one server that are kept for the next message.",
    )
    send_connection_idle: Duration = Field(
        default=DEFAULT_OPTIONS.send_connection_idle,
        ge=timedelta(0),
        le=timedelta(minutes=5),
        description="For so long they are kept.",
    )

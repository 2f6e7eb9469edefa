"""Settings of outgoing mail: next hop, DANE, connections and rates."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from merganser.settings.value_types import DEFAULT_OPTIONS, Duration


class OutgoingSettings(BaseSettings):
    """Settings of outgoing mail. Each is the variable `MERGANSER_` with the name in capitals."""

    next_hop: SecretStr | None = Field(
        default=None,
        description="Server that receives all outgoing mail: smtp://user:password@host:port or "
        "smtps://…, with ?tls=never or ?tls=required. Without it mail goes to the MX of each "
        "domain. Transports and relay hosts take precedence.",
    )
    offline_sink: Path | None = Field(
        default=DEFAULT_OPTIONS.offline_sink,
        description="For `merganser serve --demo`, which sets it: folder that receives all "
        "outgoing mail.",
        json_schema_extra={"hidden": True},
    )
    dnssec_trusted: bool = Field(
        default=DEFAULT_OPTIONS.dnssec_trusted,
        description="The name server MERGANSER_DNS_RESOLVER validates DNSSEC, and the connection "
        "to it is safe, as to 127.0.0.1. Needed for DANE: then TLSA records are trusted.",
        json_schema_extra={"hint": "write on or off"},
    )
    mx_allow_private_networks: bool = Field(
        default=DEFAULT_OPTIONS.mx_allow_private_networks,
        description="Outgoing mail can be sent to MX hosts with private, loopback and link-local "
        "addresses. If on, everybody who can send or forward mail can make the server connect to "
        "port 25 in your own network. Relay hosts, transports, MERGANSER_NEXT_HOP and domains "
        "with a backup MX here don't need it.",
        json_schema_extra={"hint": "write on or off"},
    )
    outbound_connections_per_domain: int = Field(
        default=DEFAULT_OPTIONS.outbound_connections_per_domain,
        ge=1,
        le=100,
        description="Largest number of concurrent connections of one process to the servers of "
        "one domain.",
    )
    outbound_messages_per_minute_per_domain: int = Field(
        default=DEFAULT_OPTIONS.outbound_messages_per_minute_per_domain,
        ge=0,
        le=1_000_000,
        description="Largest number of messages in a minute to one domain, relay or next hop, of "
        "all processes together. 0: unlimited.",
    )
    outbound_messages_per_connection: int = Field(
        default=DEFAULT_OPTIONS.outbound_messages_per_connection,
        ge=1,
        le=10_000,
        description="Largest number of messages that are sent over one connection.",
    )
    outbound_idle_connections: int = Field(
        default=DEFAULT_OPTIONS.outbound_idle_connections,
        ge=0,
        le=100,
        description="Largest number of idle connections to one server that are kept for the next "
        "message.",
    )
    outbound_idle_timeout: Duration = Field(
        default=DEFAULT_OPTIONS.outbound_idle_timeout,
        ge=timedelta(0),
        le=timedelta(minutes=5),
        description="How long an idle outgoing connection is kept.",
    )

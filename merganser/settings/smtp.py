"""Settings of the SMTP listeners, their limits, the queue and ACME."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from merganser.settings.value_types import PLACE, USUAL, Names, Span, Spans, networked

HOSTPORT: dict[str, Any] = {"hint": "write host:port"}
BASE64URL = re.compile("[A-Za-z0-9_-]{22,1000}={0,2}")
NETWORKS: dict[str, Any] = {"hint": "write addresses and networks such as 10.0.0.0/8"}


class SmtpSettings(BaseSettings):
    """Settings of SMTP. Each is the environment variable `MERGANSER_` with the name in capitals."""

    smtp: str | None = Field(
        default=None,
        pattern=PLACE,
        description="Where mail from other servers comes in by SMTP, as in 0.0.0.0:25; none: "
        "nowhere.",
        json_schema_extra=HOSTPORT,
    )
    submission: str | None = Field(
        default=None,
        pattern=PLACE,
        description="Where mail programs hand in what is to be sent, with STARTTLS, as in "
        "0.0.0.0:587; none: nowhere.",
        json_schema_extra=HOSTPORT,
    )
    submissions: str | None = Field(
        default=None,
        pattern=PLACE,
        description="The same with TLS from the first byte, as in 0.0.0.0:465.",
        json_schema_extra=HOSTPORT,
    )
    tls_cert: Path | None = Field(
        default=None,
        description="File with the certificate for SMTP and its chain, PEM. It is read anew when "
        "it changes. Those that are stored by `certificateSet` are shown to whoever asks for their "
        "names; without any there is no TLS, and no submission.",
    )
    tls_key: Path | None = Field(
        default=None,
        description="File with its key; none: it is in the same file.",
    )
    queue_backoff: Spans = Field(
        default=USUAL.queue_backoff,
        description="How long after each attempt to send the next one follows; the last holds "
        "from then on. A fifth more or less, so that not all come at once.",
        json_schema_extra={"hint": "write times with spaces between, as in 1m 5m 1h"},
    )
    queue_expires: Span = Field(
        default=USUAL.queue_expires,
        description="What nobody took by then goes back to its sender.",
    )
    acme_directory: str = Field(
        default=USUAL.acme_directory,
        pattern=r"^https://[^\s]+$",
        description="Directory of the authority that makes certificates by ACME (RFC 8555).",
        json_schema_extra={"hint": "write https://…"},
    )
    acme_http: str | None = Field(
        default=None,
        pattern=PLACE,
        description="Where challenges of ACME are answered besides HTTP, and nothing else, as in "
        "0.0.0.0:80; none: nowhere.",
        json_schema_extra=HOSTPORT,
    )
    acme_ca: Path | None = Field(
        default=USUAL.acme_ca,
        description="File with the certificates of those who sign that of a private authority, "
        "PEM; none: those the system trusts.",
    )
    acme_terms_agreed: bool = Field(
        default=USUAL.acme_terms_agreed,
        description="The terms of that authority are agreed to; off: it is asked for nothing.",
        json_schema_extra={"hint": "write on or off"},
    )
    acme_contact: str = Field(
        default=USUAL.acme_contact,
        pattern=r"^([^\s@]+@[^\s@]+)?$",
        description="E-mail address that the authority is told for its account; none: it has none.",
        json_schema_extra={"hint": "write an address such as postmaster@example.org"},
    )
    acme_eab_key_id: str = Field(
        default=USUAL.acme_eab_key_id,
        pattern=r"^[!-~]{0,500}$",
        description="Key id of our account outside of ACME, for authorities that bind to one "
        "(RFC 8555, section 7.3.4).",
        json_schema_extra={"hint": "write it as the authority shows it, without spaces"},
    )
    acme_eab_hmac: SecretStr | None = Field(
        default=USUAL.acme_eab_hmac,
        description="HMAC key of that account, in base64url as the authority shows it.",
        json_schema_extra={"hint": "write 16 bytes or more in base64url"},
    )
    smtp_proxies: Names = Field(
        default=(),
        description="Balancers before SMTP, addresses and networks with spaces between. All their "
        "connections begin with the PROXY protocol, version 1 or 2, which is believed.",
        json_schema_extra=NETWORKS,
    )
    smtp_connections: int = Field(
        default=200, ge=1, description="Connections at once, of each place where SMTP listens."
    )
    smtp_connections_each: int = Field(
        default=20,
        ge=1,
        description="Of these, those of one network: /24 of IPv4, /64 of IPv6.",
    )
    smtp_recipients: int = Field(
        default=100, ge=100, description="Recipients of a message that comes from elsewhere."
    )
    smtp_timeout: Span = Field(
        default=timedelta(minutes=5),
        ge=timedelta(seconds=1),
        description="A client that is silent for so long is dropped.",
    )
    smtp_message_timeout: Span = Field(
        default=timedelta(minutes=30),
        ge=timedelta(seconds=1),
        description="So long a message may take to come.",
    )
    smtp_lifetime: Span = Field(
        default=timedelta(hours=1),
        ge=timedelta(seconds=1),
        description="So long a connection may last.",
    )
    queue_delay_notice: Span = Field(
        default=USUAL.queue_delay_notice,
        ge=timedelta(0),
        le=timedelta(days=30),
        description="A message that waits for so long is told of to its sender, once; 0 s: never.",
    )
    smtp_network_rate: int = Field(
        default=1000,
        ge=0,
        description="Messages that come from one network in an hour; more are put off. 0 is "
        "unlimited.",
    )
    smtp_mailbox_rate: int = Field(
        default=100, ge=0, description="Of these, those to one account; 0 is unlimited."
    )
    greylist_delay: Span = Field(
        default=timedelta(0),
        description="Mail of a network, sender and recipient not seen together before is put off "
        "for so long; 0 s: it is not.",
    )
    greylist_for: Span = Field(
        default=timedelta(days=35),
        ge=timedelta(days=1),
        description="They are forgotten when nothing came for so long.",
    )
    greylist_allow: Names = Field(
        default=(),
        description="Addresses and networks whose mail is never put off so, with spaces between.",
        json_schema_extra=NETWORKS,
    )

    @field_validator("acme_eab_hmac")
    @classmethod
    def _base64url(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not BASE64URL.fullmatch(key.get_secret_value()):
            raise ValueError("base64url")
        return key

    @field_validator("smtp_proxies", "greylist_allow")
    @classmethod
    def _smtp_networks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return networked(names)

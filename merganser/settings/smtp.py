"""Settings of the SMTP listeners, their limits, the queue and ACME."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from merganser.settings.value_types import (
    DEFAULT_OPTIONS,
    HOST_PORT_PATTERN,
    Duration,
    DurationList,
    WordList,
    check_networks,
)

HOST_PORT_HINT: dict[str, Any] = {"hint": "write host:port"}
BASE64URL_KEY = re.compile("[A-Za-z0-9_-]{22,1000}={0,2}")
NETWORKS_HINT: dict[str, Any] = {"hint": "write addresses and networks such as 10.0.0.0/8"}


class SmtpSettings(BaseSettings):
    """Settings of SMTP. Each is the environment variable `MERGANSER_` with the name in capitals."""

    smtp: str | None = Field(
        default=None,
        pattern=HOST_PORT_PATTERN,
        description="Where mail from other servers comes in by SMTP, as in 0.0.0.0:25; none: "
        "nowhere.",
        json_schema_extra=HOST_PORT_HINT,
    )
    submission: str | None = Field(
        default=None,
        pattern=HOST_PORT_PATTERN,
        description="Where mail programs hand in what is to be sent, with STARTTLS, as in "
        "0.0.0.0:587; none: nowhere.",
        json_schema_extra=HOST_PORT_HINT,
    )
    submissions: str | None = Field(
        default=None,
        pattern=HOST_PORT_PATTERN,
        description="The same with TLS from the first byte, as in 0.0.0.0:465.",
        json_schema_extra=HOST_PORT_HINT,
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
    queue_backoff: DurationList = Field(
        default=DEFAULT_OPTIONS.queue_backoff,
        description="How long after each attempt to send the next one follows; the last holds "
        "from then on. A fifth more or less, so that not all come at once.",
        json_schema_extra={"hint": "write times with spaces between, as in 1m 5m 1h"},
    )
    queue_expires: Duration = Field(
        default=DEFAULT_OPTIONS.queue_expires,
        description="What nobody took by then goes back to its sender.",
    )
    acme_directory: str = Field(
        default=DEFAULT_OPTIONS.acme_directory,
        pattern=r"^https://[^\s]+$",
        description="Directory of the authority that makes certificates by ACME (RFC 8555).",
        json_schema_extra={"hint": "write https://…"},
    )
    acme_http: str | None = Field(
        default=None,
        pattern=HOST_PORT_PATTERN,
        description="Where challenges of ACME are answered besides HTTP, and nothing else, as in "
        "0.0.0.0:80; none: nowhere.",
        json_schema_extra=HOST_PORT_HINT,
    )
    acme_ca: Path | None = Field(
        default=DEFAULT_OPTIONS.acme_ca,
        description="File with the certificates of those who sign that of a private authority, "
        "PEM; none: those the system trusts.",
    )
    acme_terms_agreed: bool = Field(
        default=DEFAULT_OPTIONS.acme_terms_agreed,
        description="The terms of that authority are agreed to; off: it is asked for nothing.",
        json_schema_extra={"hint": "write on or off"},
    )
    acme_contact: str = Field(
        default=DEFAULT_OPTIONS.acme_contact,
        pattern=r"^([^\s@]+@[^\s@]+)?$",
        description="E-mail address that the authority is told for its account; none: it has none.",
        json_schema_extra={"hint": "write an address such as postmaster@example.org"},
    )
    acme_eab_key_id: str = Field(
        default=DEFAULT_OPTIONS.acme_eab_key_id,
        pattern=r"^[!-~]{0,500}$",
        description="Key id of our account outside of ACME, for authorities that bind to one "
        "(RFC 8555, section 7.3.4).",
        json_schema_extra={"hint": "write it as the authority shows it, without spaces"},
    )
    acme_eab_hmac: SecretStr | None = Field(
        default=DEFAULT_OPTIONS.acme_eab_hmac,
        description="HMAC key of that account, in base64url as the authority shows it.",
        json_schema_extra={"hint": "write 16 bytes or more in base64url"},
    )
    smtp_proxies: WordList = Field(
        default=(),
        description="Balancers before SMTP, addresses and networks with spaces between. All their "
        "connections begin with the PROXY protocol, version 1 or 2, which is believed.",
        json_schema_extra=NETWORKS_HINT,
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
    smtp_timeout: Duration = Field(
        default=timedelta(minutes=5),
        ge=timedelta(seconds=1),
        description="A client that is silent for so long is dropped.",
    )
    smtp_message_timeout: Duration = Field(
        default=timedelta(minutes=30),
        ge=timedelta(seconds=1),
        description="So long a message may take to come.",
    )
    smtp_lifetime: Duration = Field(
        default=timedelta(hours=1),
        ge=timedelta(seconds=1),
        description="So long a connection may last.",
    )
    queue_delay_notice: Duration = Field(
        default=DEFAULT_OPTIONS.queue_delay_notice,
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
    greylist_delay: Duration = Field(
        default=timedelta(0),
        description="Mail of a network, sender and recipient not seen together before is put off "
        "for so long; 0 s: it is not.",
    )
    greylist_for: Duration = Field(
        default=timedelta(days=35),
        ge=timedelta(days=1),
        description="They are forgotten when nothing came for so long.",
    )
    greylist_allow: WordList = Field(
        default=(),
        description="Addresses and networks whose mail is never put off so, with spaces between.",
        json_schema_extra=NETWORKS_HINT,
    )

    @field_validator("acme_eab_hmac")
    @classmethod
    def _check_eab_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not BASE64URL_KEY.fullmatch(key.get_secret_value()):
            raise ValueError("base64url")
        return key

    @field_validator("smtp_proxies", "greylist_allow")
    @classmethod
    def _check_smtp_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        return check_networks(networks)

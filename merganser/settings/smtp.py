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
    table_default,
)

HOST_PORT_HINT: dict[str, Any] = {"hint": "write host:port"}
BASE64URL_KEY = re.compile("[A-Za-z0-9_-]{22,1000}={0,2}")
NETWORKS_HINT: dict[str, Any] = {"hint": "write addresses and networks such as 10.0.0.0/8"}


class SmtpSettings(BaseSettings):
    """Settings of SMTP. Each is the environment variable `MERGANSER_` with the name in capitals."""

    smtp_listen: str | None = Field(
        default=None,
        pattern=HOST_PORT_PATTERN,
        description="Address on which SMTP listens for mail from other servers, as in "
        "0.0.0.0:25. Without it SMTP is off.",
        json_schema_extra=HOST_PORT_HINT,
    )
    submission_listen: str | None = Field(
        default=None,
        pattern=HOST_PORT_PATTERN,
        description="Address on which submission with STARTTLS listens (RFC 6409), as in "
        "0.0.0.0:587. Without it this listener is off.",
        json_schema_extra=HOST_PORT_HINT,
    )
    submission_tls_listen: str | None = Field(
        default=None,
        pattern=HOST_PORT_PATTERN,
        description="Address on which submission with implicit TLS listens (RFC 8314), as in "
        "0.0.0.0:465. Without it this listener is off.",
        json_schema_extra=HOST_PORT_HINT,
    )
    tls_cert: Path | None = Field(
        default=None,
        description="PEM file with the certificate for SMTP and its chain. It is read again when "
        "it changes. For names with a certificate stored by `certificateSet`, that one is used. "
        "Without any certificate there is no TLS and no submission.",
    )
    tls_key: Path | None = Field(
        default=None,
        description="PEM file with the private key of that certificate.",
        json_schema_extra=table_default("the file of the certificate"),
    )
    queue_retry_delays: DurationList = Field(
        default=DEFAULT_OPTIONS.queue_retry_delays,
        description="Delays between delivery attempts. The last one repeats. Each varies at "
        "random by up to a fifth.",
        json_schema_extra={"hint": "write times with spaces between, as in 1m 5m 1h"},
    )
    queue_lifetime: Duration = Field(
        default=DEFAULT_OPTIONS.queue_lifetime,
        description="A message that was not delivered in this time is returned to its sender.",
    )
    acme_directory: str = Field(
        default=DEFAULT_OPTIONS.acme_directory,
        pattern=r"^https://[^\s]+$",
        description="Directory URL of the certificate authority that issues certificates by ACME "
        "(RFC 8555).",
        json_schema_extra={"hint": "write https://…"},
    )
    acme_http_listen: str | None = Field(
        default=None,
        pattern=HOST_PORT_PATTERN,
        description="Additional address that answers only ACME HTTP challenges, as in "
        "0.0.0.0:80. Without it only MERGANSER_HTTP_LISTEN answers them.",
        json_schema_extra=HOST_PORT_HINT,
    )
    acme_ca: Path | None = Field(
        default=DEFAULT_OPTIONS.acme_ca,
        description="PEM file with the CA certificates that are trusted for a private ACME "
        "server. Without it the CAs of the system are trusted.",
    )
    acme_terms_agreed: bool = Field(
        default=DEFAULT_OPTIONS.acme_terms_agreed,
        description="You agree to the terms of the ACME certificate authority. If off, no "
        "certificate is requested.",
        json_schema_extra={"hint": "write on or off"},
    )
    acme_contact: str = Field(
        default=DEFAULT_OPTIONS.acme_contact,
        pattern=r"^([^\s@]+@[^\s@]+)?$",
        description="E-mail address that the ACME certificate authority stores with this "
        "server's account.",
        json_schema_extra={"hint": "write an address such as postmaster@example.org"},
    )
    acme_eab_key_id: str = Field(
        default=DEFAULT_OPTIONS.acme_eab_key_id,
        pattern=r"^[!-~]{0,500}$",
        description="Key ID for ACME External Account Binding (RFC 8555, section 7.3.4), if the "
        "certificate authority requires it.",
        json_schema_extra={"hint": "write it as the authority shows it, without spaces"},
    )
    acme_eab_hmac: SecretStr | None = Field(
        default=DEFAULT_OPTIONS.acme_eab_hmac,
        description="HMAC key for ACME External Account Binding, in base64url as the certificate "
        "authority shows it.",
        json_schema_extra={"hint": "write 16 bytes or more in base64url"},
    )
    smtp_trusted_proxies: WordList = Field(
        default=(),
        description="Addresses and networks of load balancers in front of SMTP, separated by "
        "spaces. All their connections must begin with the PROXY protocol, version 1 or 2, which "
        "is trusted.",
        json_schema_extra=NETWORKS_HINT,
    )
    smtp_connections: int = Field(
        default=200,
        ge=1,
        description="Largest number of concurrent connections of each SMTP listener.",
    )
    smtp_connections_per_client: int = Field(
        default=20,
        ge=1,
        description="Largest number of concurrent connections of one network (/24 of IPv4, /64 of "
        "IPv6) to each SMTP listener.",
    )
    smtp_max_recipients: int = Field(
        default=100,
        ge=100,
        description="Largest number of recipients of a message that is received by SMTP.",
    )
    smtp_idle_timeout: Duration = Field(
        default=timedelta(minutes=5),
        ge=timedelta(seconds=1),
        description="A client that sends nothing for this time is disconnected.",
    )
    smtp_message_timeout: Duration = Field(
        default=timedelta(minutes=30),
        ge=timedelta(seconds=1),
        description="Time in which a message must arrive completely.",
    )
    smtp_connection_lifetime: Duration = Field(
        default=timedelta(hours=1),
        ge=timedelta(seconds=1),
        description="Time after which a connection is closed.",
    )
    queue_delay_notice_after: Duration = Field(
        default=DEFAULT_OPTIONS.queue_delay_notice_after,
        ge=timedelta(0),
        le=timedelta(days=30),
        description="Time in the queue after which the sender gets one delay notice (RFC 3464). "
        "0 s: never.",
    )
    smtp_messages_per_hour_per_network: int = Field(
        default=1000,
        ge=0,
        description="Largest number of messages that are accepted from one network in an hour. "
        "Further messages are deferred. 0: unlimited.",
    )
    smtp_messages_per_hour_per_account: int = Field(
        default=100,
        ge=0,
        description="Largest number of messages that are accepted from one network for one "
        "account in an hour. Further messages are deferred. 0: unlimited.",
    )
    greylist_delay: Duration = Field(
        default=timedelta(0),
        description="Mail of an unknown combination of network, sender and recipient is deferred "
        "for this time. 0 s: no greylisting.",
    )
    greylist_retention: Duration = Field(
        default=timedelta(days=35),
        ge=timedelta(days=1),
        description="A known combination is forgotten after this time without mail.",
    )
    greylist_exempt_networks: WordList = Field(
        default=(),
        description="Addresses and networks whose mail is never greylisted, separated by spaces.",
        json_schema_extra=NETWORKS_HINT,
    )

    @field_validator("acme_eab_hmac")
    @classmethod
    def _check_eab_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not BASE64URL_KEY.fullmatch(key.get_secret_value()):
            raise ValueError("base64url")
        return key

    @field_validator("smtp_trusted_proxies", "greylist_exempt_networks")
    @classmethod
    def _check_smtp_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        return check_networks(networks)

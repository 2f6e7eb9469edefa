"""Settings of accounts: sign-in, passwords, second factors and limits."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from merganser.settings.value_types import (
    DEFAULT_OPTIONS,
    HOST_NAME_PATTERN,
    HOST_PORT_PATTERN,
    ByteSize,
    Duration,
    WordList,
    check_networks,
    table_default,
)
from models.queue.rate_values import RATE_PATTERN

RATE_PATTERN_OR_EMPTY = rf"^({RATE_PATTERN.pattern})?$"
PER: dict[str, Any] = {"hint": "write how many in what time, such as 100/HOUR"}


class AccountSettings(BaseSettings):
    """Settings of accounts. Each is the variable `MERGANSER_` with the name in capitals."""

    app_passwords_max_per_user: int = Field(
        default=DEFAULT_OPTIONS.app_passwords_max_per_user,
        ge=0,
        description="Largest number of application passwords of a user.",
    )
    key_value_stores: WordList = Field(
        default=DEFAULT_OPTIONS.key_value_stores,
        description="Names of the key-value stores, separated by spaces. `default` is used if a "
        "request names none. If you remove a name, its entries are hidden and not deleted.",
        json_schema_extra={
            "default": "default",
            "hint": "write names of small letters, digits, - and _, at most 32 each",
        },
    )
    key_value_max_key_size: ByteSize = Field(
        default=DEFAULT_OPTIONS.key_value_max_key_size,
        ge=1,
        le=1024,
        description="Longest key of a key-value store, in bytes of UTF-8.",
    )
    key_value_max_key_levels: int = Field(
        default=DEFAULT_OPTIONS.key_value_max_key_levels,
        ge=1,
        le=512,
        description="Largest number of levels of a key in a key-value store. Slashes separate "
        "levels.",
    )
    key_value_max_value_size: ByteSize = Field(
        default=DEFAULT_OPTIONS.key_value_max_value_size,
        le=1 << 20,
        description="Largest value of a key-value store, in bytes of UTF-8.",
    )
    metadata_max_size: ByteSize = Field(
        default=DEFAULT_OPTIONS.metadata_max_size,
        le=1 << 20,
        description="Largest object that applications can store as metadata of a user, an address, "
        "a filter or a message, in bytes of JSON. It also limits the value of an annotation.",
    )
    key_value_max_entries: int = Field(
        default=DEFAULT_OPTIONS.key_value_max_entries,
        ge=0,
        le=10_000,
        description="Largest number of entries of a user in all key-value stores, and of all "
        "shared entries together.",
    )
    key_value_max_total_size: ByteSize = Field(
        default=DEFAULT_OPTIONS.key_value_max_total_size,
        le=64 << 20,
        description="Total size of all keys and values of a user, and of all shared ones together.",
    )
    webauthn_rp_id: str = Field(
        default=DEFAULT_OPTIONS.webauthn_rp_id,
        pattern=rf"^$|{HOST_NAME_PATTERN}",
        description="Relying party ID of security keys (WebAuthn): the domain of the pages that "
        "use them, or a parent domain. A change makes all registered keys useless.",
        json_schema_extra={
            **table_default("the host of `MERGANSER_PUBLIC_URL`"),
            "hint": "write a domain such as example.org",
        },
    )
    webauthn_origins: WordList = Field(
        default=DEFAULT_OPTIONS.webauthn_origins,
        description="Origins of the pages that use security keys, separated by spaces, as in "
        "https://webmail.example.org.",
        json_schema_extra={
            **table_default("the origin of `MERGANSER_PUBLIC_URL`"),
            "hint": "write https://host, without a slash at its end",
        },
    )
    profile_imap_server: str = Field(
        default=DEFAULT_OPTIONS.profile_imap_server,
        pattern=rf"^$|{HOST_PORT_PATTERN}",
        description="IMAP server with TLS in profiles for Apple devices: host:port. Merganser "
        "serves no IMAP: this is another server, which accepts the application password.",
        json_schema_extra={**table_default("none"), "hint": "write host:port"},
    )
    profile_pop3_server: str = Field(
        default=DEFAULT_OPTIONS.profile_pop3_server,
        pattern=rf"^$|{HOST_PORT_PATTERN}",
        description="POP3 server with TLS in profiles for Apple devices, if no IMAP server is "
        "set: host:port.",
        json_schema_extra={**table_default("none"), "hint": "write host:port"},
    )
    profile_smtp_server: str = Field(
        default=DEFAULT_OPTIONS.profile_smtp_server,
        pattern=rf"^$|{HOST_PORT_PATTERN}",
        description="Submission server with TLS that is named to mail programs, in profiles for "
        "Apple devices, autoconfig and Autodiscover: host:port. Port 587 means STARTTLS.",
        json_schema_extra={
            **table_default("`MERGANSER_HOSTNAME` with the port of the submission listener"),
            "hint": "write host:port",
        },
    )
    profile_cert: Path | None = Field(
        default=DEFAULT_OPTIONS.profile_cert,
        description="PEM file with the certificate and its chain that sign profiles for Apple "
        "devices. Without it they are not signed.",
    )
    profile_key: Path | None = Field(
        default=DEFAULT_OPTIONS.profile_key,
        description="PEM file with the private key of that certificate, without a passphrase.",
        json_schema_extra=table_default("the file of the certificate"),
    )
    limits_recipients_per_day: int = Field(
        default=DEFAULT_OPTIONS.limits_recipients_per_day,
        ge=0,
        description="Largest number of recipients to whom a user can write in 24 hours. 0: "
        "unlimited.",
    )
    limits_received_per_hour: int = Field(
        default=DEFAULT_OPTIONS.limits_received_per_hour,
        ge=0,
        description="Largest number of messages that a user receives in an hour. Further messages "
        "are deferred. 0: unlimited.",
    )
    limits_send_rate_per_user: str = Field(
        default=DEFAULT_OPTIONS.limits_send_rate_per_user,
        pattern=RATE_PATTERN_OR_EMPTY,
        description="Messages that an account without its own rate limit can send in a time, "
        "such as 100/HOUR; also /SECOND, /MINUTE and /DAY.",
        json_schema_extra=PER,
    )
    limits_send_rate_per_domain: str = Field(
        default=DEFAULT_OPTIONS.limits_send_rate_per_domain,
        pattern=RATE_PATTERN_OR_EMPTY,
        description="Messages that all accounts of a domain without its own rate limit can send "
        "together in a time, such as 100/HOUR.",
        json_schema_extra=PER,
    )
    limits_send_rate_platform: str = Field(
        default=DEFAULT_OPTIONS.limits_send_rate_platform,
        pattern=RATE_PATTERN_OR_EMPTY,
        description="Messages that all accounts can send together in a time, such as 100/HOUR.",
        json_schema_extra=PER,
    )
    limits_forwards_per_day: int = Field(
        default=DEFAULT_OPTIONS.limits_forwards_per_day,
        ge=0,
        description="Largest number of messages that an account or address without its own limit "
        "can forward in 24 hours. 0: unlimited.",
    )
    spam_no_forward_score: int = Field(
        default=DEFAULT_OPTIONS.spam_no_forward_score,
        ge=1,
        le=101,
        description="Spam score (0 to 100) from which mail is not forwarded. 101: all mail is "
        "forwarded.",
    )
    forwards_allow_private_networks: bool = Field(
        default=DEFAULT_OPTIONS.forwards_allow_private_networks,
        description="Accounts and addresses can forward to relays and URLs in private, loopback "
        "and link-local networks.",
        json_schema_extra={"hint": "write on or off"},
    )
    filters_max_per_user: int = Field(
        default=DEFAULT_OPTIONS.filters_max_per_user,
        ge=0,
        le=1000,
        description="Largest number of filters of a user.",
    )
    addresses_max_temporary_per_user: int = Field(
        default=DEFAULT_OPTIONS.addresses_max_temporary_per_user,
        ge=0,
        description="Largest number of temporary addresses of a user.",
    )
    addresses_subaddress_delimiters: str = Field(
        default=DEFAULT_OPTIONS.addresses_subaddress_delimiters,
        pattern=r"^[+\-_=#]*$",
        description="Characters that begin a subaddress (RFC 5233): ada+news@ is delivered to "
        "ada@, unless ada+news@ is an address of its own. Allowed characters: "
        "`+-_=#`.",
        json_schema_extra={"hint": "write some of + - _ = #, or nothing"},
    )
    limits_warning_percent: int = Field(
        default=DEFAULT_OPTIONS.limits_warning_percent,
        ge=0,
        le=99,
        description="Percent of a limit from which its level is WARNING. 0: never.",
    )
    limits_critical_percent: int = Field(
        default=DEFAULT_OPTIONS.limits_critical_percent,
        ge=0,
        le=99,
        description="Percent of a limit from which its level is CRITICAL. 0: never.",
    )
    quota_warning_emails: bool = Field(
        default=DEFAULT_OPTIONS.quota_warning_emails,
        description="Users get an e-mail when their storage reaches the level WARNING or "
        "CRITICAL, or is full.",
        json_schema_extra={"hint": "write on or off"},
    )
    autoreply_interval: Duration = Field(
        default=DEFAULT_OPTIONS.autoreply_interval,
        ge=timedelta(hours=1),
        le=timedelta(days=366),
        description="A sender gets at most one automatic reply in this time, unless the account "
        "sets another interval.",
    )
    argon2_memory_cost: int = Field(
        default=DEFAULT_OPTIONS.argon2_memory_cost,
        ge=8,
        description="Memory of one password hash (Argon2id), in KiB.",
    )
    argon2_time_cost: int = Field(
        default=DEFAULT_OPTIONS.argon2_time_cost,
        ge=1,
        description="Passes of one password hash (Argon2id).",
    )
    passwords_min_length: int = Field(
        default=DEFAULT_OPTIONS.passwords_min_length,
        ge=1,
        le=256,
        description="Least number of characters of a new password. Imported hashes are not "
        "checked. A domain can set another number.",
    )
    passwords_min_character_classes: int = Field(
        default=DEFAULT_OPTIONS.passwords_min_character_classes,
        ge=1,
        le=4,
        description="Least number of character classes in a new password: lower case, upper "
        "case, digits, others. A domain can set another number. NIST SP 800-63B advises against "
        "more than 1.",
    )
    totp_drift_steps: int = Field(
        default=DEFAULT_OPTIONS.totp_drift_steps,
        ge=0,
        le=10,
        description="Steps of 30 seconds by which the clock of a TOTP authenticator can differ, "
        "in either direction.",
    )
    breached_passwords_file: Path | None = Field(
        default=DEFAULT_OPTIONS.breached_passwords_file,
        description="File of breached passwords, which new passwords must not be in if "
        "`allowUnsafe` is false. It has one password per line, or its SHA-1 in hex, sorted by "
        "bytes. Without it a built-in list of a few hundred common passwords is used.",
    )
    breached_passwords_url: str | None = Field(
        default=DEFAULT_OPTIONS.breached_passwords_url,
        pattern=r"^https?://[^\s@]+[^/\s@]$",
        description="Range service for breached passwords, asked in addition, as in "
        "https://api.pwnedpasswords.com/range. It learns the first five digits of the SHA-1. If "
        "it does not answer in time, it is ignored.",
        json_schema_extra={"hint": "write https://host/path, without a slash at its end"},
    )
    welcome_folder: Path | None = Field(
        default=DEFAULT_OPTIONS.welcome_folder,
        description="Folder of messages that a new account with an address gets. Each has a "
        "NAME.json with from, subject, mailbox, seen, flagged and attachments, and a NAME.html or "
        "NAME.txt. [NAME], [FNAME], [LNAME], [USERNAME], [EMAIL] and [DOMAIN] are replaced.",
    )
    password_hashing_memory: ByteSize = Field(
        default=DEFAULT_OPTIONS.password_hashing_memory,
        description="Memory that all concurrent password hashes can use. It limits how many are "
        "computed at once, two at least. A sign-in that waits too long for it fails.",
    )
    sign_in_max_failures: int = Field(
        default=DEFAULT_OPTIONS.sign_in_max_failures,
        ge=1,
        description="Wrong passwords for one account or unknown name from one network (/24 of "
        "IPv4, /64 of IPv6). After this number, the network can't sign in to the account for the "
        "rest of `MERGANSER_SIGN_IN_FAILURE_WINDOW`. Each following lockout is twice as long. "
        "Other networks can still sign in.",
    )
    sign_in_max_failures_per_account: int = Field(
        default=DEFAULT_OPTIONS.sign_in_max_failures_per_account,
        ge=1,
        description="Wrong passwords for one account from all networks together in "
        "`MERGANSER_SIGN_IN_FAILURE_WINDOW`. After this number, only networks from which the user "
        "has signed in before can sign in.",
    )
    sign_in_failure_window: Duration = Field(
        default=DEFAULT_OPTIONS.sign_in_failure_window,
        ge=timedelta(seconds=1),
        description="Time in which failed sign-ins of one account or name are counted.",
    )
    sign_in_max_failures_per_network: int = Field(
        default=DEFAULT_OPTIONS.sign_in_max_failures_per_network,
        ge=1,
        description="Wrong passwords from one network (/24 of IPv4, /64 of IPv6) in "
        "`MERGANSER_SIGN_IN_NETWORK_FAILURE_WINDOW`. After this number, the network can't sign in "
        "to any account.",
    )
    sign_in_network_failure_window: Duration = Field(
        default=DEFAULT_OPTIONS.sign_in_network_failure_window,
        ge=timedelta(seconds=1),
        description="Time in which failed sign-ins from one network are counted.",
    )
    sign_in_max_lockout: Duration = Field(
        default=DEFAULT_OPTIONS.sign_in_max_lockout,
        ge=timedelta(seconds=1),
        description="The longest lockout after failed sign-ins.",
    )
    sign_in_exempt_networks: WordList = Field(
        default=DEFAULT_OPTIONS.sign_in_exempt_networks,
        description="Addresses and networks that are never locked out for all accounts, "
        "separated by spaces. One account can still be locked for them. Their failures don't "
        "count towards a ban.",
        json_schema_extra={"hint": "write addresses and networks such as 10.0.0.0/8"},
    )
    tokens_idle_timeout: Duration = Field(
        default=DEFAULT_OPTIONS.tokens_idle_timeout,
        description="A new token expires if it is unused for this time.",
    )
    tokens_max_age: Duration = Field(
        default=DEFAULT_OPTIONS.tokens_max_age,
        description="A token expires at this age, even if it is in use.",
    )
    oauth_access_token_ttl: Duration = Field(
        default=DEFAULT_OPTIONS.oauth_access_token_ttl,
        ge=timedelta(minutes=1),
        le=timedelta(days=1),
        description="Lifetime of an access token of an OAuth client. Use does not extend it.",
    )
    oauth_refresh_token_ttl: Duration = Field(
        default=DEFAULT_OPTIONS.oauth_refresh_token_ttl,
        ge=timedelta(hours=1),
        le=timedelta(days=3650),
        description="A refresh token of an OAuth client expires if it is unused for this time.",
    )
    oauth_registration: bool = Field(
        default=DEFAULT_OPTIONS.oauth_registration,
        description="Programs can register themselves as public OAuth clients at "
        "`/oauth/register` (RFC 7591). If off, only an ADMIN creates clients.",
        json_schema_extra={"hint": "write on or off"},
    )

    @field_validator("sign_in_exempt_networks")
    @classmethod
    def _check_sign_in_networks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_networks(names)

    @field_validator("key_value_stores")
    @classmethod
    def _check_key_value_store_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", name):
                raise ValueError("not a name of a store")
        return names

    @field_validator("webauthn_origins")
    @classmethod
    def _normalize_webauthn_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[^\s/?#]+", origin):
                raise ValueError("not an origin")
        return tuple(origin.lower() for origin in origins)

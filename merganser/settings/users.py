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

    max_app_passwords: int = Field(
        default=DEFAULT_OPTIONS.max_app_passwords,
        ge=0,
        description="Application passwords of a user.",
    )
    key_value_stores: WordList = Field(
        default=DEFAULT_OPTIONS.key_value_stores,
        description="Names of key-value stores, with spaces between; `default` is the one of who "
        "names none. Whoever takes a name away hides what is in it, and removes nothing.",
        json_schema_extra={
            "default": "default",
            "hint": "write names of small letters, digits, - and _, at most 32 each",
        },
    )
    key_value_key: ByteSize = Field(
        default=DEFAULT_OPTIONS.key_value_key,
        ge=1,
        le=1024,
        description="Longest key of a key-value store, in bytes of UTF-8.",
    )
    key_value_levels: int = Field(
        default=DEFAULT_OPTIONS.key_value_levels,
        ge=1,
        le=512,
        description="Levels of a key, with slashes between.",
    )
    key_value_max: ByteSize = Field(
        default=DEFAULT_OPTIONS.key_value_max,
        le=1 << 20,
        description="Largest value of a key-value store, in bytes of UTF-8.",
    )
    key_value_entries: int = Field(
        default=DEFAULT_OPTIONS.key_value_entries,
        ge=0,
        le=10_000,
        description="Entries in key-value stores of a user, and of all that are shared.",
    )
    key_value_bytes: ByteSize = Field(
        default=DEFAULT_OPTIONS.key_value_bytes,
        le=64 << 20,
        description="Keys and values of those together.",
    )
    webauthn_id: str = Field(
        default=DEFAULT_OPTIONS.webauthn_id,
        pattern=rf"^$|{HOST_NAME_PATTERN}",
        description="Domain that security keys are made for: that of the pages they are used on, "
        "or one above it. Whoever changes it makes all keys useless.",
        json_schema_extra={
            **table_default("the host of `MERGANSER_PUBLIC_URL`"),
            "hint": "write a domain such as example.org",
        },
    )
    webauthn_origins: WordList = Field(
        default=DEFAULT_OPTIONS.webauthn_origins,
        description="Origins of the pages that security keys are used on, with spaces between, as "
        "in https://webmail.example.org.",
        json_schema_extra={
            **table_default("the origin of `MERGANSER_PUBLIC_URL`"),
            "hint": "write https://host, without a slash at its end",
        },
    )
    imap_server: str = Field(
        default=DEFAULT_OPTIONS.imap_server,
        pattern=rf"^$|{HOST_PORT_PATTERN}",
        description="IMAP server with TLS that profiles for Apple's devices name: host:port. "
        "Merganser serves no IMAP: this is another server, which accepts the application "
        "password.",
        json_schema_extra={**table_default("none"), "hint": "write host:port"},
    )
    pop3_server: str = Field(
        default=DEFAULT_OPTIONS.pop3_server,
        pattern=rf"^$|{HOST_PORT_PATTERN}",
        description="The same for POP3, which profiles name if no IMAP server is set.",
        json_schema_extra={**table_default("none"), "hint": "write host:port"},
    )
    smtp_server: str = Field(
        default=DEFAULT_OPTIONS.smtp_server,
        pattern=rf"^$|{HOST_PORT_PATTERN}",
        description="Server for submission with TLS that those profiles name: host:port.",
        json_schema_extra={**table_default("`MERGANSER_HOSTNAME`:465"), "hint": "write host:port"},
    )
    profile_cert: Path | None = Field(
        default=DEFAULT_OPTIONS.profile_cert,
        description="PEM file of the certificate, with those between, that profiles for Apple's "
        "devices are signed with; without it they are not signed.",
    )
    profile_key: Path | None = Field(
        default=DEFAULT_OPTIONS.profile_key,
        description="PEM file of its private key, without a passphrase.",
        json_schema_extra=table_default("the file of the certificate"),
    )
    recipients_daily: int = Field(
        default=DEFAULT_OPTIONS.recipients_daily,
        ge=0,
        description="Recipients a user may write to in 24 hours; 0 is unlimited.",
    )
    received_hourly: int = Field(
        default=DEFAULT_OPTIONS.received_hourly,
        ge=0,
        description="Messages a user is sent in an hour, before senders are put off; "
        "0 is unlimited.",
    )
    rate_user: str = Field(
        default=DEFAULT_OPTIONS.rate_user,
        pattern=RATE_PATTERN_OR_EMPTY,
        description="Messages a user may send in a time, where it has no rate of its own, as in "
        "100/HOUR; also /SECOND, /MINUTE and /DAY.",
        json_schema_extra=PER,
    )
    rate_domain: str = Field(
        default=DEFAULT_OPTIONS.rate_domain,
        pattern=RATE_PATTERN_OR_EMPTY,
        description="The same for all users of a domain together, where it has no rate of its own.",
        json_schema_extra=PER,
    )
    rate_platform: str = Field(
        default=DEFAULT_OPTIONS.rate_platform,
        pattern=RATE_PATTERN_OR_EMPTY,
        description="The same for all users together.",
        json_schema_extra=PER,
    )
    forwards_daily: int = Field(
        default=DEFAULT_OPTIONS.forwards_daily,
        ge=0,
        description="Messages an account or address forwards in 24 hours; 0 is unlimited.",
    )
    spam_forward_max: int = Field(
        default=DEFAULT_OPTIONS.spam_forward_max,
        ge=1,
        le=101,
        description="Spam score, of 0 to 100, from which mail is not forwarded; with 101 all is.",
    )
    forwards_private: bool = Field(
        default=DEFAULT_OPTIONS.forwards_private,
        description="Accounts and addresses may forward to relays and pages in private, loopback "
        "and link-local networks, too.",
        json_schema_extra={"hint": "write on or off"},
    )
    filters_max: int = Field(
        default=DEFAULT_OPTIONS.filters_max, ge=0, le=1000, description="Filters of a user."
    )
    temporary_addresses: int = Field(
        default=DEFAULT_OPTIONS.temporary_addresses,
        ge=0,
        description="Temporary addresses of a user.",
    )
    delimiters: str = Field(
        default=DEFAULT_OPTIONS.delimiters,
        pattern=r"^[+\-_=#]*$",
        description="Each of these signs begins a label: ada+news@ is ada@, unless that has an "
        "address of its own. Some of `+-_=#`.",
        json_schema_extra={"hint": "write some of + - _ = #, or nothing"},
    )
    limit_warning: int = Field(
        default=DEFAULT_OPTIONS.limit_warning,
        ge=0,
        le=99,
        description="Percent of a limit from where it counts as WARNING; 0: nothing does.",
    )
    limit_critical: int = Field(
        default=DEFAULT_OPTIONS.limit_critical,
        ge=0,
        le=99,
        description="Percent of a limit from where it counts as CRITICAL; 0: nothing does.",
    )
    limit_letters: bool = Field(
        default=DEFAULT_OPTIONS.limit_letters,
        description="Write to accounts when their storage passes one of these marks, or is full.",
        json_schema_extra={"hint": "write on or off"},
    )
    autoreply_interval: Duration = Field(
        default=DEFAULT_OPTIONS.autoreply_interval,
        ge=timedelta(hours=1),
        le=timedelta(days=366),
        description="A sender has one automatic answer in that time, where the account says "
        "nothing else.",
    )
    argon2_memory: int = Field(
        default=DEFAULT_OPTIONS.argon2_memory,
        ge=8,
        description="KiB that hashing a password takes.",
    )
    argon2_time: int = Field(
        default=DEFAULT_OPTIONS.argon2_time,
        ge=1,
        description="Passes that hashing a password takes.",
    )
    password_min: int = Field(
        default=DEFAULT_OPTIONS.password_min,
        ge=1,
        le=256,
        description="Characters a password has at least when it is set; imported hashes go by. "
        "Domains may say otherwise.",
    )
    password_classes: int = Field(
        default=DEFAULT_OPTIONS.password_classes,
        ge=1,
        le=4,
        description="How many of lower case, upper case, digits and others are in it at least; "
        "domains may say otherwise. NIST SP 800-63B advises against more than 1.",
    )
    totp_steps: int = Field(
        default=DEFAULT_OPTIONS.totp_steps,
        ge=0,
        le=10,
        description="Steps of 30 seconds that the clock of an authenticator may be wrong, either "
        "way.",
    )
    breached_list: Path | None = Field(
        default=DEFAULT_OPTIONS.breached_list,
        description="File of passwords that nobody should have, asked where `allowUnsafe` is "
        "false: one a line, or their SHA-1 in hex, in the order of their bytes. Without it the "
        "commonest few hundred are known.",
    )
    breached_range: str | None = Field(
        default=DEFAULT_OPTIONS.breached_range,
        pattern=r"^https?://[^\s@]+[^/\s@]$",
        description="Range service that is asked as well, as in "
        "https://api.pwnedpasswords.com/range: it learns five digits of the SHA-1. One that does "
        "not answer in time is passed over.",
        json_schema_extra={"hint": "write https://host/path, without a slash at its end"},
    )
    welcome: Path | None = Field(
        default=DEFAULT_OPTIONS.welcome,
        description="Folder of messages that a new account with an address begins with: for each "
        "a NAME.json with from, subject, mailbox, seen, flagged and attachments, and a NAME.html "
        "or NAME.txt. [NAME], [FNAME], [LNAME], [USERNAME], [EMAIL] and [DOMAIN] are filled in.",
    )
    login_memory: ByteSize = Field(
        default=DEFAULT_OPTIONS.login_memory,
        description="Memory that all hashing of passwords may take at once; it says how many are "
        "hashed side by side, two at least. Whoever has to wait too long is sent away.",
    )
    login_failures: int = Field(
        default=DEFAULT_OPTIONS.login_failures,
        ge=1,
        description="Wrong passwords for one account, or under one name that nobody has, from one "
        "network (/24 of IPv4, /64 of IPv6). After that many, sign-ins of the account from that "
        "network are refused for the rest of `MERGANSER_LOGIN_WINDOW`, and each time in a row for "
        "twice as long. Other networks can still sign in.",
    )
    account_failures: int = Field(
        default=DEFAULT_OPTIONS.account_failures,
        ge=1,
        description="Wrong passwords for one account from all networks together, in "
        "`MERGANSER_LOGIN_WINDOW`. After that many, only networks from which the user has signed "
        "in before can sign in.",
    )
    login_window: Duration = Field(
        default=DEFAULT_OPTIONS.login_window,
        ge=timedelta(seconds=1),
        description="Time in which those are counted.",
    )
    network_failures: int = Field(
        default=DEFAULT_OPTIONS.network_failures,
        ge=1,
        description="The same for all of one network, /24 of IPv4 or /64 of IPv6.",
    )
    network_window: Duration = Field(
        default=DEFAULT_OPTIONS.network_window,
        ge=timedelta(seconds=1),
        description="Time in which those are counted.",
    )
    login_wait: Duration = Field(
        default=DEFAULT_OPTIONS.login_wait,
        ge=timedelta(seconds=1),
        description="The longest wait after wrong passwords, however many there were.",
    )
    login_allow: WordList = Field(
        default=DEFAULT_OPTIONS.login_allow,
        description="Addresses and networks that are never closed, with spaces between; an account "
        "is closed to them as to all.",
        json_schema_extra={"hint": "write addresses and networks such as 10.0.0.0/8"},
    )
    token_idle: Duration = Field(
        default=DEFAULT_OPTIONS.token_idle, description="Unused that long, a token ends."
    )
    token_life: Duration = Field(
        default=DEFAULT_OPTIONS.token_life, description="A token ends at that age."
    )

    @field_validator("login_allow")
    @classmethod
    def _check_sign_in_networks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_networks(names)

    @field_validator("key_value_stores")
    @classmethod
    def _check_key_value_store_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for each in names:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", each):
                raise ValueError("not a name of a store")
        return names

    @field_validator("webauthn_origins")
    @classmethod
    def _check_webauthn_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for each in origins:
            if not re.fullmatch(r"https?://[^\s/?#]+", each):
                raise ValueError("not an origin")
        return tuple(each.lower() for each in origins)

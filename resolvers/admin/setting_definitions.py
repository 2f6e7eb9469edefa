"""The definitions of all settings: option, type, range and description."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from mail.addresses.address_syntax import LABEL_DELIMITERS, checked_domain
from models import quantities
from models.errors import InvalidInput
from models.queue.rate_values import RATE_PATTERN
from models.runtime.options import MIB, Options

CONTACT_PATTERN = re.compile(r"([!-?A-~]{1,64}@[A-Za-z0-9.-]{1,250})?")
MAX_LIST_ITEMS = 100
VALUE_PATH = ("value",)
DAY, CENTURY = timedelta(days=1), timedelta(days=36_500)


class SettingType(StrEnum):
    """The type of a setting, which decides how its value is written in JSON."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DURATION = "duration"  # ISO 8601, such as P30D
    SIZE = "size"  # bytes; also taken as text such as "3 GiB"
    LIST = "list"


SettingJson = Any  # JSON: a text, a number, a switch, null, or a list of these


@dataclass(frozen=True, slots=True)
class SettingDefinition:
    """A setting that sets an option. `parse` and `json_from_value` convert between both."""

    key: str
    option: str  # the field in models/runtime/options.py
    type: SettingType
    name: str
    description: str
    minimum: Any = None
    maximum: Any = None
    nullable: bool = False
    convert: Callable[[Any], Any] | None = None  # after the conversion from JSON by type
    restart_required: bool = False

    def parse(self, value: object) -> Any:
        """Return the option value of a JSON value.

        Raises InvalidInput with the broken rule if the value is not allowed.
        """
        if value is None and self.nullable:
            return None
        try:
            parsed = PARSERS[self.type](value)
        except ValueError as problem:
            raise InvalidInput(
                f"{self.key}: {problem}", constraint="type", path=VALUE_PATH
            ) from None
        if self.minimum is not None and parsed < self.minimum:
            message = f"{self.key} is {_json_from_option(self.minimum)} at least"
            raise InvalidInput(message, constraint="min", path=VALUE_PATH)
        if self.maximum is not None and parsed > self.maximum:
            message = f"{self.key} is {_json_from_option(self.maximum)} at most"
            raise InvalidInput(message, constraint="max", path=VALUE_PATH)
        return self.convert(parsed) if self.convert else parsed

    def json_from_value(self, value: Any) -> SettingJson:
        """Return an option value as JSON."""
        if self.type is SettingType.DURATION and isinstance(value, int):
            value = timedelta(days=value)
        return _json_from_option(value)

    def json_from_options(self, options: Options) -> SettingJson:
        """Return the current value of the option as JSON."""
        return self.json_from_value(getattr(options, self.option))


def _json_from_option(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_from_option(each) for each in value]
    return quantities.format_duration(value) if isinstance(value, timedelta) else value


def _parse_string(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("not text")


def _parse_boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("neither true nor false")


def _parse_list(value: object) -> list[Any]:
    if isinstance(value, list) and len(value) <= MAX_LIST_ITEMS:
        return value
    raise ValueError(f"not a list of at most {MAX_LIST_ITEMS}")


PARSERS: Mapping[SettingType, Callable[[object], Any]] = {
    SettingType.STRING: _parse_string,
    SettingType.BOOLEAN: _parse_boolean,
    SettingType.NUMBER: quantities.parse_integer,
    SettingType.SIZE: quantities.parse_size,
    SettingType.DURATION: quantities.parse_duration,
    SettingType.LIST: _parse_list,
}


def _convert_domain(value: str) -> str:
    return checked_domain(value, path="value")


def _validate_contact(value: str) -> str:
    if not CONTACT_PATTERN.fullmatch(value):
        raise InvalidInput("an address, or nothing", constraint="pattern", path=VALUE_PATH)
    return value


def _normalize_delimiters(value: str) -> str:
    if not set(value) <= set(LABEL_DELIMITERS):
        raise InvalidInput(
            f"only {' '.join(LABEL_DELIMITERS)}", constraint="pattern", path=VALUE_PATH
        )
    return "".join(dict.fromkeys(value))


def _validate_rate(value: str) -> str:
    if value and not RATE_PATTERN.fullmatch(value):
        raise InvalidInput("such as 100/HOUR, or nothing", constraint="pattern", path=VALUE_PATH)
    return value


def _validator_of_choices(*choices: str) -> Callable[[str], str]:
    def validate_choice(value: str) -> str:
        if value not in choices:
            raise InvalidInput(
                f"one of {', '.join(choices)}", constraint="pattern", path=VALUE_PATH
            )
        return value

    return validate_choice


def _days_from_duration(value: timedelta) -> int:
    if value % DAY:
        raise InvalidInput("only whole days", constraint="pattern", path=VALUE_PATH)
    return value.days


def _convert_backoff(value: list[Any]) -> tuple[timedelta, ...]:
    try:
        durations = tuple(map(quantities.parse_duration, value))
    except ValueError as problem:
        raise InvalidInput(
            f"queue.backoff: {problem}", constraint="type", path=VALUE_PATH
        ) from None
    if not durations or not all(timedelta(seconds=1) <= each <= 7 * DAY for each in durations):
        message = "queue.backoff: one duration at least, each from a second to a week"
        raise InvalidInput(message, constraint="range", path=VALUE_PATH)
    return durations


TIB = MIB << 20
MINUTE, ZERO = timedelta(minutes=1), timedelta(0)
NUMBER, SIZE, DURATION = SettingType.NUMBER, SettingType.SIZE, SettingType.DURATION
# Each has key, option, type, name and description for people, and range.
DEFINITIONS: dict[str, SettingDefinition] = {
    one.key: one
    for one in (
        SettingDefinition(
            "acme.contact", "acme_contact", SettingType.STRING, "Contact of certificates",
            "E-mail address that the authority is told when our account is made; nothing: it has "
            "none.", convert=_validate_contact,
        ),
        SettingDefinition(
            "acme.termsAgreed", "acme_terms_agreed", SettingType.BOOLEAN, "Terms of certificates",
            "The terms of the authority that makes certificates by ACME are agreed to; without "
            "that it is asked for nothing.",
        ),
        SettingDefinition(
            "addresses.delimiters", "delimiters", SettingType.STRING, "Labels of addresses",
            "Each of these signs begins a label: ada+news@ is ada@, unless that has an address of "
            "its own. Some of + - _ = #; nothing: there are no labels.",
            convert=_normalize_delimiters,
        ),
        SettingDefinition(
            "addresses.maxTemporary", "temporary_addresses", NUMBER, "Temporary addresses",
            "Temporary addresses of a user.", 0, 10_000,
        ),
        SettingDefinition(
            "adminlog.retention", "adminlog_for", DURATION, "Administrative log",
            "How long it is kept who changed what of others, and which settings.", DAY, CENTURY,
        ),
        SettingDefinition(
            "archive.retention", "archive_for", DURATION, "Archive",
            "How long deleted messages can be restored.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "auth.accountFailures", "account_failures", NUMBER, "Wrong passwords of all networks",
            "After so many for one account, from all networks together in auth.window, only "
            "networks from which the user has signed in before can sign in.", 1, 1_000_000,
        ),
        SettingDefinition(
            "auth.failures", "login_failures", NUMBER, "Wrong passwords",
            "After so many for one account or name from one network, that network cannot sign in "
            "to it for the rest of auth.window, and each time in a row for twice as long.",
            1, 10_000,
        ),
        SettingDefinition(
            "auth.longestWait", "login_wait", DURATION, "Longest wait",
            "The longest wait after wrong passwords.", MINUTE, DAY,
        ),
        SettingDefinition(
            "auth.networkFailures", "network_failures", NUMBER, "Wrong passwords of a network",
            "The same for all of one network, /24 of IPv4 or /64 of IPv6.", 1, 1_000_000,
        ),
        SettingDefinition(
            "auth.networkWindow", "network_window", DURATION, "Window of networks",
            "Time in which those are counted.", timedelta(seconds=1), DAY,
        ),
        SettingDefinition(
            "auth.tokenLife", "token_life", DURATION, "Age of tokens",
            "A token ends at that age, however much it is used.", MINUTE, CENTURY,
        ),
        SettingDefinition(
            "auth.tokenTtl", "token_idle", DURATION, "Unused tokens",
            "Unused that long, a new token ends.", MINUTE, CENTURY,
        ),
        SettingDefinition(
            "auth.totpSteps", "totp_steps", NUMBER, "Clocks of authenticators",
            "So many steps of 30 seconds the clock of an authenticator may be wrong, either way; "
            "a code is good once all the same.", 0, 10,
        ),
        SettingDefinition(
            "auth.window", "login_window", DURATION, "Window of accounts",
            "Time in which wrong passwords of one account or name are counted.",
            timedelta(seconds=1), DAY,
        ),
        SettingDefinition(
            "authentication.check", "authentication_check", SettingType.STRING,
            "Mail that is checked",
            "By SPF, DKIM, DMARC and ARC: smtp, what clients hand in by SMTP; all, what comes by "
            "LMTP, too; off, none.", convert=_validator_of_choices("off", "smtp", "all"),
        ),
        SettingDefinition(
            "authentication.dmarc", "dmarc_policy", SettingType.STRING, "Forged mail",
            "What comes of mail where DMARC fails and its domain wants it quarantined or refused: "
            "junk, reject (where its domain wants that, else junk), ignore.",
            convert=_validator_of_choices("ignore", "junk", "reject"),
        ),
        SettingDefinition(
            "authlog.retention", "authlog_for", DURATION, "Security log",
            "How long security events are kept; PT0S: none are written.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "autoreply.interval", "autoreply_interval", DURATION, "Automatic answers",
            "A sender has one answer in that time, where the account says nothing else.",
            timedelta(hours=1), timedelta(days=366),
        ),
        SettingDefinition(
            "bulk.max", "bulk", NUMBER, "Bulk changes",
            "Messages that one request changes at once, and most things one mutation names.",
            1, 10_000,
        ),
        SettingDefinition(
            "changes.overflow", "changes_overflow", NUMBER, "Longest way behind",
            "Changes that a subscription may be behind; who is further reads the state afresh, or "
            "goes on by the query.", 500, 100_000_000,
        ),
        SettingDefinition(
            "connectors.allowPrivate", "connectors_private", SettingType.BOOLEAN,
            "Connectors inward",
            "Mail may be fetched from private and loopback addresses, and without encryption.",
        ),
        SettingDefinition(
            "dkim.overlap", "dkim_overlap", DURATION, "Replaced keys",
            "How long keys that sign no more are kept, and their records are needed.", DAY, CENTURY,
        ),
        SettingDefinition(
            "dkim.signHost", "dkim_host", SettingType.BOOLEAN, "Signature of this machine",
            "What leaves is signed also with the keys of the domain that this machine is in.",
        ),
        SettingDefinition(
            "domains.default", "default_domain", SettingType.STRING, "Default domain",
            "Domain of the address of a new user whose name has none; null: it must be given.",
            nullable=True, convert=_convert_domain,
        ),
        SettingDefinition(
            "files.quota", "files_quota", SIZE, "Storage for files",
            "Storage of a user for files that are shared or wait for a draft; 0 is unlimited.",
            0, 16 * TIB,
        ),
        SettingDefinition(
            "files.retention", "files_for", DURATION, "Unused files",
            "Files that are not shared, and were not fetched for so long, are removed; PT0S: "
            "never.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "filters.max", "filters_max", NUMBER, "Filters", "Filters of a user.", 0, 1000
        ),
        SettingDefinition(
            "forwards.allowPrivate", "forwards_private", SettingType.BOOLEAN, "Forwarding inward",
            "Accounts and addresses may forward to relays and pages in private, loopback and "
            "link-local networks, too.",
        ),
        SettingDefinition(
            "journal.events", "journal_events", NUMBER, "Length of the journal",
            "Changes that stay readable in one account.", 1000, 100_000_000,
        ),
        SettingDefinition(
            "journal.retention", "journal_days", DURATION, "Journal",
            "How long changes stay readable for clients that come back; whole days.", DAY, CENTURY,
            convert=_days_from_duration,
        ),
        SettingDefinition(
            "keyValue.bytes", "key_value_bytes", SIZE, "Room of a key-value store",
            "Keys and values of a user, and of all that are shared, together.", 0, 64 * MIB,
        ),
        SettingDefinition(
            "keyValue.entries", "key_value_entries", NUMBER, "Entries of a key-value store",
            "Entries of a user, and of all that are shared.", 0, 10_000,
        ),
        SettingDefinition(
            "keyValue.key", "key_value_key", SIZE, "Longest key",
            "Longest key of a key-value store, in bytes of UTF-8.", 1, 1024,
        ),
        SettingDefinition(
            "keyValue.levels", "key_value_levels", NUMBER, "Levels of keys",
            "Levels of a key, with slashes between.", 1, 512,
        ),
        SettingDefinition(
            "keyValue.max", "key_value_max", SIZE, "Largest value",
            "Largest value of a key-value store, in bytes of UTF-8.", 0, MIB,
        ),
        SettingDefinition(
            "limits.critical", "limit_critical", NUMBER, "Second mark",
            "Percent of a limit from where it counts as CRITICAL; 0: nothing does.", 0, 99,
        ),
        SettingDefinition(
            "limits.forwards", "forwards_daily", NUMBER, "Forwarded messages",
            "Messages in 24 hours that an account or address forwards, where it has no limit of "
            "its own; 0 is unlimited.", 0, 100_000_000,
        ),
        SettingDefinition(
            "limits.letters", "limit_letters", SettingType.BOOLEAN, "Letters about storage",
            "Accounts are written to when their storage passes one of the marks, or is full.",
        ),
        SettingDefinition(
            "limits.ratePerDomain", "rate_domain", SettingType.STRING,
            "Messages of a domain in a time",
            "Messages that all accounts of a domain may send together in a time, such as 100/HOUR, "
            "where the domain has no rate of its own; nothing: any number.", convert=_validate_rate,
        ),
        SettingDefinition(
            "limits.ratePerUser", "rate_user", SettingType.STRING,
            "Messages of an account in a time",
            "Messages that an account may send in a time, such as 100/HOUR, where it has no rate "
            "of its own; nothing: any number.", convert=_validate_rate,
        ),
        SettingDefinition(
            "limits.ratePlatform", "rate_platform", SettingType.STRING, "Messages of all in a time",
            "Messages that all accounts may send together in a time, such as 100/HOUR; nothing: "
            "any number.", convert=_validate_rate,
        ),
        SettingDefinition(
            "limits.warning", "limit_warning", NUMBER, "First mark",
            "Percent of a limit from where it counts as WARNING; 0: nothing does.", 0, 99,
        ),
        SettingDefinition(
            "mailboxes.max", "max_mailboxes", NUMBER, "Folders", "Folders of a user.", 5, 100_000
        ),
        SettingDefinition(
            "message.max", "message_max", SIZE, "Largest message",
            "Largest message that is taken, sent or stored. Sessions of LMTP that are open keep "
            "what they began with.", 1 << 16, 256 * MIB,
        ),
        SettingDefinition(
            "mtaSts.mode", "mta_sts", SettingType.STRING, "Policy for encryption",
            "The policy (MTA-STS) that domains here have: testing, enforce; off, none.",
            convert=_validator_of_choices("off", "testing", "enforce"),
        ),
        SettingDefinition(
            "passwords.minClasses", "password_classes", NUMBER, "Kinds of characters",
            "How many of lower case, upper case, digits and others are in a password at least "
            "when it is set, where its domain says nothing.", 1, 4,
        ),
        SettingDefinition(
            "passwords.minLength", "password_min", NUMBER, "Length of passwords",
            "Characters a password has at least when it is set, where its domain says nothing.",
            1, 256,
        ),
        SettingDefinition(
            "push.allowPrivate", "push_private", SettingType.BOOLEAN, "Pushes inward",
            "Push channels may lead to private, loopback and link-local addresses, too.",
        ),
        SettingDefinition(
            "quarantine.bytes", "quarantine_bytes", SIZE, "Room for held mail",
            "Bytes of the messages that are held for a user; of more the oldest go.",
            1 << 16, 16 * TIB,
        ),
        SettingDefinition(
            "quarantine.items", "quarantine_items", NUMBER, "Held messages",
            "Messages that are held for a user; of more the oldest go.", 1, 10_000,
        ),
        SettingDefinition(
            "quarantine.max", "quarantine_max", SIZE, "Largest held message",
            "Largest message that is held.", 1 << 16, 256 * MIB,
        ),
        SettingDefinition(
            "quarantine.retention", "quarantine_for", DURATION, "Held mail",
            "How long mail is held that nobody lets in.", DAY, timedelta(days=366),
        ),
        SettingDefinition(
            "queue.backoff", "queue_backoff", SettingType.LIST, "Pauses between attempts",
            "How long after each attempt to send the next one follows; the last holds from then "
            "on. A fifth more or less, so that not all come at once.", convert=_convert_backoff,
        ),
        SettingDefinition(
            "queue.delayNotice", "queue_delay_notice", DURATION, "Notice of delay",
            "A message that waits for so long is told of to its sender, once; PT0S: never.",
            ZERO, timedelta(days=30),
        ),
        SettingDefinition(
            "queue.expires", "queue_expires", DURATION, "Age in the queue",
            "What nobody took by then goes back to its sender.", MINUTE, 30 * DAY,
        ),
        SettingDefinition(
            "quota.default", "default_quota", SIZE, "Storage",
            "Storage of a user, where neither user nor domain says more; 0 is unlimited.",
            0, 16 * TIB,
        ),
        SettingDefinition(
            "receipts.retention", "receipts_for", DURATION, "Repeated deliveries",
            "How long a repeated delivery is known, and not stored twice.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "replays.retention", "replays_for", DURATION, "Idempotency keys",
            "How long the answer to an idempotency key is kept.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "sending.allowPrivate", "mx_private", SettingType.BOOLEAN, "Sending inward",
            "Servers that DNS names for a domain may have private, loopback and link-local "
            "addresses, too.",
        ),
        SettingDefinition(
            "sending.connectionMessages", "send_connection_messages", NUMBER,
            "Messages of a connection", "So many are sent over one connection.", 1, 10_000,
        ),
        SettingDefinition(
            "sending.perDomain", "send_per_domain", NUMBER, "Connections to a domain",
            "Connections at once to the servers of one domain, of each process.", 1, 100,
        ),
        SettingDefinition(
            "sending.perMinute", "send_per_minute", NUMBER, "Messages in a minute",
            "To one domain, relay or next hop; 0: any number.", 0, 1_000_000,
        ),
        SettingDefinition(
            "spam.forwardMax", "spam_forward_max", NUMBER, "Spam that is not forwarded",
            "Spam score, of 0 to 100, from which mail is not forwarded; with 101 all is.", 1, 101,
        ),
        SettingDefinition(
            "spam.quarantine", "spam_quarantine", NUMBER, "Spam that is held",
            "Score from which spam is held, and does not go to Junk; 0: none is.", 0, 100,
        ),
        SettingDefinition(
            "submission.maxRecipients", "max_recipients", NUMBER, "Recipients",
            "Recipients of a message that is sent.", 1, 100_000,
        ),
        SettingDefinition(
            "trace.retention", "trace_for", DURATION, "Ways of messages",
            "How long it is kept which way messages took; PT0S: nothing is written.", ZERO,
            CENTURY,
        ),
        SettingDefinition(
            "undo.window", "undo_window", DURATION, "Undo",
            "How long a change to messages can be taken back.", ZERO, CENTURY,
        ),
        SettingDefinition(
            "upload.max", "upload_max", SIZE, "Largest upload",
            "Largest file in an upload.", 1 << 16, 1024 * MIB,
        ),
        SettingDefinition(
            "webhooks.allowPrivate", "webhooks_private", SettingType.BOOLEAN, "Webhooks inward",
            "Webhooks may be posted to private, loopback and link-local addresses, too.",
        ),
    )
}  # fmt: skip

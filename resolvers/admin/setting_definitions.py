"""The definitions of all settings: option, type, range and description."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any

import orjson

from mail.addresses.address_syntax import DELIMITERS, checked_domain
from models import quantities
from models.errors import Invalid
from models.queue.rate_values import RATE_PATTERN
from models.runtime.options import MIB, Options

CUSTOM = "custom."  # prefix of the operators' own keys
CUSTOM_KEY = re.compile(r"custom(\.[A-Za-z0-9][A-Za-z0-9_-]*)+")
CONTACT = re.compile(r"([!-?A-~]{1,64}@[A-Za-z0-9.-]{1,250})?")
LONGEST_KEY = 128  # characters
LONGEST = 4096  # as JSON
ITEMS = 100
PATH = ("value",)
DAY, YEARS = timedelta(days=1), timedelta(days=36_500)


class Kind(StrEnum):
    """The type of a setting, which decides how its value is written in JSON."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DURATION = "duration"  # ISO 8601, such as P30D
    SIZE = "size"  # bytes; also taken as text such as "3 GiB"
    LIST = "list"


Plain = Any  # JSON: a text, a number, a switch, null, or a list of these


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that sets an option. `parse` and `json_from_value` convert between both."""

    key: str
    option: str  # the field in models/runtime/options.py
    kind: Kind
    name: str
    description: str
    least: Any = None
    most: Any = None
    nullable: bool = False
    read: Callable[[Any], Any] | None = None  # after the conversion from JSON by type
    restart_required: bool = False

    def parse(self, value: object) -> Any:
        """Return the option value of a JSON value.

        Raises InvalidInput with the broken rule if the value is not allowed.
        """
        if value is None and self.nullable:
            return None
        try:
            found = READ[self.kind](value)
        except ValueError as problem:
            raise Invalid(f"{self.key}: {problem}", constraint="type", path=PATH) from None
        if self.least is not None and found < self.least:
            text = f"{self.key} is {_written(self.least)} at least"
            raise Invalid(text, constraint="min", path=PATH)
        if self.most is not None and found > self.most:
            text = f"{self.key} is {_written(self.most)} at most"
            raise Invalid(text, constraint="max", path=PATH)
        return self.read(found) if self.read else found

    def plain(self, value: Any) -> Plain:
        """Return an option value as JSON."""
        if self.kind is Kind.DURATION and isinstance(value, int):
            value = timedelta(days=value)
        return _written(value)

    def standing(self, options: Options) -> Plain:
        """Return the current value of the option as JSON."""
        return self.plain(getattr(options, self.option))


def _written(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_written(each) for each in value]
    return quantities.long(value) if isinstance(value, timedelta) else value


def _string(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("not text")


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("neither true nor false")


def _list(value: object) -> list[Any]:
    if isinstance(value, list) and len(value) <= ITEMS:
        return value
    raise ValueError(f"not a list of at most {ITEMS}")


READ: Mapping[Kind, Callable[[object], Any]] = {
    Kind.STRING: _string,
    Kind.BOOLEAN: _switch,
    Kind.NUMBER: quantities.whole,
    Kind.SIZE: quantities.size,
    Kind.DURATION: quantities.duration,
    Kind.LIST: _list,
}


def _domain(value: str) -> str:
    return checked_domain(value, path="value")


def _contact(value: str) -> str:
    if not CONTACT.fullmatch(value):
        raise Invalid("an address, or nothing", constraint="pattern", path=PATH)
    return value


def _delimiters(value: str) -> str:
    if not set(value) <= set(DELIMITERS):
        raise Invalid(f"only {' '.join(DELIMITERS)}", constraint="pattern", path=PATH)
    return "".join(dict.fromkeys(value))


def _rate(value: str) -> str:
    if value and not RATE_PATTERN.fullmatch(value):
        raise Invalid("such as 100/HOUR, or nothing", constraint="pattern", path=PATH)
    return value


def _one_of(*words: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in words:
            raise Invalid(f"one of {', '.join(words)}", constraint="pattern", path=PATH)
        return value

    return read


def _days(value: timedelta) -> int:
    if value % DAY:
        raise Invalid("only whole days", constraint="pattern", path=PATH)
    return value.days


def _pauses(value: list[Any]) -> tuple[timedelta, ...]:
    try:
        found = tuple(map(quantities.duration, value))
    except ValueError as problem:
        raise Invalid(f"queue.backoff: {problem}", constraint="type", path=PATH) from None
    if not found or not all(timedelta(seconds=1) <= each <= 7 * DAY for each in found):
        text = "queue.backoff: one duration at least, each from a second to a week"
        raise Invalid(text, constraint="range", path=PATH)
    return found


TIB = MIB << 20
MINUTE, NOTHING = timedelta(minutes=1), timedelta(0)
NUMBER, SIZE, DURATION = Kind.NUMBER, Kind.SIZE, Kind.DURATION
# Each has key, option, type, name and description for people, and range.
DECLARED: dict[str, Setting] = {
    one.key: one
    for one in (
        Setting(
            "acme.contact", "acme_contact", Kind.STRING, "Contact of certificates",
            "E-mail address that the authority is told when our account is made; nothing: it has "
            "none.", read=_contact,
        ),
        Setting(
            "acme.termsAgreed", "acme_terms_agreed", Kind.BOOLEAN, "Terms of certificates",
            "The terms of the authority that makes certificates by ACME are agreed to; without "
            "that it is asked for nothing.",
        ),
        Setting(
            "addresses.delimiters", "delimiters", Kind.STRING, "Labels of addresses",
            "Each of these signs begins a label: ada+news@ is ada@, unless that has an address of "
            "its own. Some of + - _ = #; nothing: there are no labels.",
            read=_delimiters,
        ),
        Setting(
            "addresses.maxTemporary", "temporary_addresses", NUMBER, "Temporary addresses",
            "Temporary addresses of a user.", 0, 10_000,
        ),
        Setting(
            "adminlog.retention", "adminlog_for", DURATION, "Administrative log",
            "How long it is kept who changed what of others, and which settings.", DAY, YEARS,
        ),
        Setting(
            "archive.retention", "archive_for", DURATION, "Archive",
            "How long deleted messages can be restored.", NOTHING, YEARS,
        ),
        Setting(
            "auth.accountFailures", "account_failures", NUMBER, "Wrong passwords of all networks",
            "After so many for one account, from all networks together in auth.window, only "
            "networks from which the user has signed in before can sign in.", 1, 1_000_000,
        ),
        Setting(
            "auth.failures", "login_failures", NUMBER, "Wrong passwords",
            "After so many for one account or name from one network, that network cannot sign in "
            "to it for the rest of auth.window, and each time in a row for twice as long.",
            1, 10_000,
        ),
        Setting(
            "auth.longestWait", "login_wait", DURATION, "Longest wait",
            "The longest wait after wrong passwords.", MINUTE, DAY,
        ),
        Setting(
            "auth.networkFailures", "network_failures", NUMBER, "Wrong passwords of a network",
            "The same for all of one network, /24 of IPv4 or /64 of IPv6.", 1, 1_000_000,
        ),
        Setting(
            "auth.networkWindow", "network_window", DURATION, "Window of networks",
            "Time in which those are counted.", timedelta(seconds=1), DAY,
        ),
        Setting(
            "auth.tokenLife", "token_life", DURATION, "Age of tokens",
            "A token ends at that age, however much it is used.", MINUTE, YEARS,
        ),
        Setting(
            "auth.tokenTtl", "token_idle", DURATION, "Unused tokens",
            "Unused that long, a new token ends.", MINUTE, YEARS,
        ),
        Setting(
            "auth.totpSteps", "totp_steps", NUMBER, "Clocks of authenticators",
            "So many steps of 30 seconds the clock of an authenticator may be wrong, either way; "
            "a code is good once all the same.", 0, 10,
        ),
        Setting(
            "auth.window", "login_window", DURATION, "Window of accounts",
            "Time in which wrong passwords of one account or name are counted.",
            timedelta(seconds=1), DAY,
        ),
        Setting(
            "authentication.check", "authentication_check", Kind.STRING,
            "Mail that is checked",
            "By SPF, DKIM, DMARC and ARC: smtp, what clients hand in by SMTP; all, what comes by "
            "LMTP, too; off, none.", read=_one_of("off", "smtp", "all"),
        ),
        Setting(
            "authentication.dmarc", "dmarc_policy", Kind.STRING, "Forged mail",
            "What comes of mail where DMARC fails and its domain wants it quarantined or refused: "
            "junk, reject (where its domain wants that, else junk), ignore.",
            read=_one_of("ignore", "junk", "reject"),
        ),
        Setting(
            "authlog.retention", "authlog_for", DURATION, "Security log",
            "How long security events are kept; PT0S: none are written.", NOTHING, YEARS,
        ),
        Setting(
            "autoreply.interval", "autoreply_interval", DURATION, "Automatic answers",
            "A sender has one answer in that time, where the account says nothing else.",
            timedelta(hours=1), timedelta(days=366),
        ),
        Setting(
            "bulk.max", "bulk", NUMBER, "Bulk changes",
            "Messages that one request changes at once, and most things one mutation names.",
            1, 10_000,
        ),
        Setting(
            "changes.overflow", "changes_overflow", NUMBER, "Longest way behind",
            "Changes that a subscription may be behind; who is further reads the state afresh, or "
            "goes on by the query.", 500, 100_000_000,
        ),
        Setting(
            "connectors.allowPrivate", "connectors_private", Kind.BOOLEAN,
            "Connectors inward",
            "Mail may be fetched from private and loopback addresses, and without encryption.",
        ),
        Setting(
            "dkim.overlap", "dkim_overlap", DURATION, "Replaced keys",
            "How long keys that sign no more are kept, and their records are needed.", DAY, YEARS,
        ),
        Setting(
            "dkim.signHost", "dkim_host", Kind.BOOLEAN, "Signature of this machine",
            "What leaves is signed also with the keys of the domain that this machine is in.",
        ),
        Setting(
            "domains.default", "default_domain", Kind.STRING, "Default domain",
            "Domain of the address of a new user whose name has none; null: it must be given.",
            nullable=True, read=_domain,
        ),
        Setting(
            "files.quota", "files_quota", SIZE, "Storage for files",
            "Storage of a user for files that are shared or wait for a draft; 0 is unlimited.",
            0, 16 * TIB,
        ),
        Setting(
            "files.retention", "files_for", DURATION, "Unused files",
            "Files that are not shared, and were not fetched for so long, are removed; PT0S: "
            "never.", NOTHING, YEARS,
        ),
        Setting(
            "filters.max", "filters_max", NUMBER, "Filters", "Filters of a user.", 0, 1000
        ),
        Setting(
            "forwards.allowPrivate", "forwards_private", Kind.BOOLEAN, "Forwarding inward",
            "Accounts and addresses may forward to relays and pages in private, loopback and "
            "link-local networks, too.",
        ),
        Setting(
            "journal.events", "journal_events", NUMBER, "Length of the journal",
            "Changes that stay readable in one account.", 1000, 100_000_000,
        ),
        Setting(
            "journal.retention", "journal_days", DURATION, "Journal",
            "How long changes stay readable for clients that come back; whole days.", DAY, YEARS,
            read=_days,
        ),
        Setting(
            "keyValue.bytes", "key_value_bytes", SIZE, "Room of a key-value store",
            "Keys and values of a user, and of all that are shared, together.", 0, 64 * MIB,
        ),
        Setting(
            "keyValue.entries", "key_value_entries", NUMBER, "Entries of a key-value store",
            "Entries of a user, and of all that are shared.", 0, 10_000,
        ),
        Setting(
            "keyValue.key", "key_value_key", SIZE, "Longest key",
            "Longest key of a key-value store, in bytes of UTF-8.", 1, 1024,
        ),
        Setting(
            "keyValue.levels", "key_value_levels", NUMBER, "Levels of keys",
            "Levels of a key, with slashes between.", 1, 512,
        ),
        Setting(
            "keyValue.max", "key_value_max", SIZE, "Largest value",
            "Largest value of a key-value store, in bytes of UTF-8.", 0, MIB,
        ),
        Setting(
            "limits.critical", "limit_critical", NUMBER, "Second mark",
            "Percent of a limit from where it counts as CRITICAL; 0: nothing does.", 0, 99,
        ),
        Setting(
            "limits.forwards", "forwards_daily", NUMBER, "Forwarded messages",
            "Messages in 24 hours that an account or address forwards, where it has no limit of "
            "its own; 0 is unlimited.", 0, 100_000_000,
        ),
        Setting(
            "limits.letters", "limit_letters", Kind.BOOLEAN, "Letters about storage",
            "Accounts are written to when their storage passes one of the marks, or is full.",
        ),
        Setting(
            "limits.ratePerDomain", "rate_domain", Kind.STRING,
            "Messages of a domain in a time",
            "Messages that all accounts of a domain may send together in a time, such as 100/HOUR, "
            "where the domain has no rate of its own; nothing: any number.", read=_rate,
        ),
        Setting(
            "limits.ratePerUser", "rate_user", Kind.STRING,
            "Messages of an account in a time",
            "Messages that an account may send in a time, such as 100/HOUR, where it has no rate "
            "of its own; nothing: any number.", read=_rate,
        ),
        Setting(
            "limits.ratePlatform", "rate_platform", Kind.STRING, "Messages of all in a time",
            "Messages that all accounts may send together in a time, such as 100/HOUR; nothing: "
            "any number.", read=_rate,
        ),
        Setting(
            "limits.warning", "limit_warning", NUMBER, "First mark",
            "Percent of a limit from where it counts as WARNING; 0: nothing does.", 0, 99,
        ),
        Setting(
            "mailboxes.max", "max_mailboxes", NUMBER, "Folders", "Folders of a user.", 5, 100_000
        ),
        Setting(
            "message.max", "message_max", SIZE, "Largest message",
            "Largest message that is taken, sent or stored. Sessions of LMTP that are open keep "
            "what they began with.", 1 << 16, 256 * MIB,
        ),
        Setting(
            "mtaSts.mode", "mta_sts", Kind.STRING, "Policy for encryption",
            "The policy (MTA-STS) that domains here have: testing, enforce; off, none.",
            read=_one_of("off", "testing", "enforce"),
        ),
        Setting(
            "passwords.minClasses", "password_classes", NUMBER, "Kinds of characters",
            "How many of lower case, upper case, digits and others are in a password at least "
            "when it is set, where its domain says nothing.", 1, 4,
        ),
        Setting(
            "passwords.minLength", "password_min", NUMBER, "Length of passwords",
            "Characters a password has at least when it is set, where its domain says nothing.",
            1, 256,
        ),
        Setting(
            "push.allowPrivate", "push_private", Kind.BOOLEAN, "Pushes inward",
            "Push channels may lead to private, loopback and link-local addresses, too.",
        ),
        Setting(
            "quarantine.bytes", "quarantine_bytes", SIZE, "Room for held mail",
            "Bytes of the messages that are held for a user; of more the oldest go.",
            1 << 16, 16 * TIB,
        ),
        Setting(
            "quarantine.items", "quarantine_items", NUMBER, "Held messages",
            "Messages that are held for a user; of more the oldest go.", 1, 10_000,
        ),
        Setting(
            "quarantine.max", "quarantine_max", SIZE, "Largest held message",
            "Largest message that is held.", 1 << 16, 256 * MIB,
        ),
        Setting(
            "quarantine.retention", "quarantine_for", DURATION, "Held mail",
            "How long mail is held that nobody lets in.", DAY, timedelta(days=366),
        ),
        Setting(
            "queue.backoff", "queue_backoff", Kind.LIST, "Pauses between attempts",
            "How long after each attempt to send the next one follows; the last holds from then "
            "on. A fifth more or less, so that not all come at once.", read=_pauses,
        ),
        Setting(
            "queue.delayNotice", "queue_delay_notice", DURATION, "Notice of delay",
            "A message that waits for so long is told of to its sender, once; PT0S: never.",
            NOTHING, timedelta(days=30),
        ),
        Setting(
            "queue.expires", "queue_expires", DURATION, "Age in the queue",
            "What nobody took by then goes back to its sender.", MINUTE, 30 * DAY,
        ),
        Setting(
            "quota.default", "default_quota", SIZE, "Storage",
            "Storage of a user, where neither user nor domain says more; 0 is unlimited.",
            0, 16 * TIB,
        ),
        Setting(
            "receipts.retention", "receipts_for", DURATION, "Repeated deliveries",
            "How long a repeated delivery is known, and not stored twice.", NOTHING, YEARS,
        ),
        Setting(
            "replays.retention", "replays_for", DURATION, "Idempotency keys",
            "How long the answer to an idempotency key is kept.", NOTHING, YEARS,
        ),
        Setting(
            "sending.allowPrivate", "mx_private", Kind.BOOLEAN, "Sending inward",
            "Servers that DNS names for a domain may have private, loopback and link-local "
            "addresses, too.",
        ),
        Setting(
            "sending.connectionMessages", "send_connection_messages", NUMBER,
            "Messages of a connection", "So many are sent over one connection.", 1, 10_000,
        ),
        Setting(
            "sending.perDomain", "send_per_domain", NUMBER, "Connections to a domain",
            "Connections at once to the servers of one domain, of each process.", 1, 100,
        ),
        Setting(
            "sending.perMinute", "send_per_minute", NUMBER, "Messages in a minute",
            "To one domain, relay or next hop; 0: any number.", 0, 1_000_000,
        ),
        Setting(
            "spam.forwardMax", "spam_forward_max", NUMBER, "Spam that is not forwarded",
            "Spam score, of 0 to 100, from which mail is not forwarded; with 101 all is.", 1, 101,
        ),
        Setting(
            "spam.quarantine", "spam_quarantine", NUMBER, "Spam that is held",
            "Score from which spam is held, and does not go to Junk; 0: none is.", 0, 100,
        ),
        Setting(
            "submission.maxRecipients", "max_recipients", NUMBER, "Recipients",
            "Recipients of a message that is sent.", 1, 100_000,
        ),
        Setting(
            "trace.retention", "trace_for", DURATION, "Ways of messages",
            "How long it is kept which way messages took; PT0S: nothing is written.", NOTHING,
            YEARS,
        ),
        Setting(
            "undo.window", "undo_window", DURATION, "Undo",
            "How long a change to messages can be taken back.", NOTHING, YEARS,
        ),
        Setting(
            "upload.max", "upload_max", SIZE, "Largest upload",
            "Largest file in an upload.", 1 << 16, 1024 * MIB,
        ),
        Setting(
            "webhooks.allowPrivate", "webhooks_private", Kind.BOOLEAN, "Webhooks inward",
            "Webhooks may be posted to private, loopback and link-local addresses, too.",
        ),
    )
}  # fmt: skip


def custom_value(value: object) -> Plain:
    """Return the value of a custom setting: text, number, boolean, or a list of these.

    Raises InvalidInput if it has another type or is too long.
    """
    items = value if isinstance(value, list) else [value]
    if len(items) > ITEMS:
        raise Invalid(f"at most {ITEMS} items", constraint="max", path=PATH)
    if not all(map(_scalar, items)):
        text = "a text, a number, true, false, or a list of these"
        raise Invalid(text, constraint="type", path=PATH)
    if len(orjson.dumps(value)) > LONGEST:
        raise Invalid(f"at most {LONGEST} bytes of JSON", constraint="max", path=PATH)
    return value


def _scalar(value: object) -> bool:
    match value:
        case bool():
            return True
        case int():
            return abs(value) < quantities.WHOLE
        case float():
            return math.isfinite(value)
        case str():
            return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
        case _:
            return False


def checked_key(key: str, *, path: tuple[str, ...] = ("key",), index: int | None = None) -> str:
    """Return the key of a defined or custom setting. Raises InvalidInput if it is unknown."""
    if key in DECLARED or (len(key) <= LONGEST_KEY and CUSTOM_KEY.fullmatch(key)):
        return key
    text = f"there is no such setting; those of your own begin with {CUSTOM}"
    raise Invalid(text, constraint="unknown", path=path, index=index)


def kind_of(value: Plain) -> Kind:
    """Return the type of the value of a custom setting."""
    if isinstance(value, bool):
        return Kind.BOOLEAN
    if isinstance(value, int | float):
        return Kind.NUMBER
    return Kind.LIST if isinstance(value, list) else Kind.STRING


def effective(base: Options, stored: Mapping[str, Any]) -> tuple[Options, list[str]]:
    """Return the options with the stored values, and the keys of unusable values."""
    useless = []
    values: dict[str, Any] = {}
    for key, value in stored.items():
        try:
            if not key.startswith(CUSTOM):
                values[DECLARED[key].option] = DECLARED[key].parse(value)
        except (KeyError, Invalid):
            useless.append(key)
    return replace(base, **values), useless

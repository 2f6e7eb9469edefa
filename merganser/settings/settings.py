"""All settings of the environment. Only this module reads the variables."""

import os
from dataclasses import fields
from datetime import timedelta
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsConfigDict

from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.http import HttpSettings
from merganser.settings.incoming_mail import IncomingSettings
from merganser.settings.outgoing_mail import OutgoingSettings
from merganser.settings.scanners import ScannerSettings
from merganser.settings.signatures import SigningSettings
from merganser.settings.smtp import SmtpSettings
from merganser.settings.units import format_duration, format_size, parse_size
from merganser.settings.users import AccountSettings
from merganser.settings.value_types import (
    DEFAULT_OPTIONS,
    HOST_NAME_PATTERN,
    HOST_PORT_PATTERN,
    ByteSize,
    Duration,
    WordList,
    table_default,
)
from models.runtime.options import Options
from models.store.postgres.address import is_postgres, parse_postgres_address

PREFIX = "MERGANSER_"
FAULT_PATTERN = r"^[a-z]+:[1-9][0-9]*$"
DRIVER_BY_SCHEME = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}

BUS_URL_SCHEMES = ("unix", "postgres", "postgresql", "redis", "rediss", "nats", "tls")
BUS_NAMES = ("auto", "process", "unix", "postgresql")  # values without a URL


def database_url_with_driver(url: str) -> str:
    """Add the driver of SQLAlchemy to a database URL. Raises ValueError if it is unsupported."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in DRIVER_BY_SCHEME:
        raise ValueError("write sqlite:///path or postgresql://user:password@host/database")
    if is_postgres(url):
        parse_postgres_address(url)
    return f"{DRIVER_BY_SCHEME[scheme]}://{rest}"


DatabaseUrl = Annotated[str, BeforeValidator(database_url_with_driver)]


class Settings(
    HttpSettings,
    AccountSettings,
    IncomingSettings,
    SmtpSettings,
    OutgoingSettings,
    SigningSettings,
    ScannerSettings,
):
    """All settings. Each is the environment variable `MERGANSER_` with the name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    data: Path = Field(
        default=Path("var"),
        description="Folder for all that is ours: store, blobs, spool and secret.",
    )
    store: DatabaseUrl = Field(
        default_factory=lambda values: f"sqlite+aiosqlite:///{values['data']}/merganser.db",
        description="Database: sqlite:///path, or a connection URI of PostgreSQL with the "
        "parameters that libpq documents, such as "
        "postgresql://user:password@host/database?sslmode=verify-full.",
        json_schema_extra=table_default("sqlite:///{data}/merganser.db"),
    )
    blobs: str = Field(
        default_factory=lambda values: f"{values['data']}/blobs",
        description="Where large bytes live: a folder, or s3://bucket/prefix and its kind.",
        json_schema_extra=table_default("{data}/blobs"),
    )
    cold_blobs: str | None = Field(
        default=None,
        description="A second store, for what `messageTierMove` moves there, spelt as BLOBS is; "
        "it stays set as long as anything lies there.",
    )
    wakeups: SecretStr = Field(
        default=SecretStr("auto"),
        description="How processes that share a store wake each other: process, not at all; unix, "
        "by sockets in {data}/bells, or unix:///folder; postgresql, by NOTIFY of the store, or "
        "postgresql://… of another; redis://…, rediss://…, nats://… or tls://… by a server of "
        "that kind; auto, unix with an SQLite store and else postgresql.",
        json_schema_extra={
            **table_default("auto"),
            "hint": "write auto, process, unix, postgresql, or the URL of Redis or NATS",
        },
    )
    http: str = Field(
        default="127.0.0.1:8025",
        pattern=HOST_PORT_PATTERN,
        description="Where GraphQL listens: host:port.",
        json_schema_extra={"hint": "write host:port"},
    )
    lmtp: str = Field(
        default="127.0.0.1:8024",
        pattern=HOST_PORT_PATTERN,
        description="Where LMTP listens: host:port.",
        json_schema_extra={"hint": "write host:port"},
    )
    bootstrap_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="A bearer key with the role ROOT, at least 16 characters: whoever starts the "
        "server has it without asking the store.",
        json_schema_extra={"hint": "it needs 16 characters at least"},
    )
    secret: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Signs the addresses we hand out, at least 32 characters. Processes that share "
        "a store must share it.",
        json_schema_extra={
            **table_default("the file {data}/secret, made at first"),
            "hint": "it needs 32 characters at least",
        },
    )
    vault: Path | None = Field(
        default=None,
        description="File of the keys that seal secrets in the store, such as seeds of second "
        "factors; readable by nobody else, and kept where no backup of the store lies.",
        json_schema_extra=table_default("the file {data}/vault, made at first"),
    )
    hostname: str = Field(
        default=DEFAULT_OPTIONS.hostname,
        pattern=HOST_NAME_PATTERN,
        description="The name of this machine in mail: in greetings, Message-IDs and reports.",
        json_schema_extra={"hint": "write a name such as mx.example.org"},
    )
    public_url: str = Field(
        default=DEFAULT_OPTIONS.public_url,
        pattern=r"^$|^https?://[^\s]+[^/\s]$",
        description="What stands before the paths of addresses we hand out, as in "
        "https://mail.example.org. Without it they are paths alone.",
        json_schema_extra={"hint": "write https://host, without a slash at its end"},
    )
    origins: WordList = Field(
        default=(),
        description="Web origins that may call GraphQL from a browser (CORS), with spaces between.",
    )
    default_domain: str | None = Field(
        default=DEFAULT_OPTIONS.default_domain,
        pattern=HOST_NAME_PATTERN,
        description="Domain of the address of a new user whose name has none.",
        json_schema_extra={"hint": "write a domain such as example.org"},
    )
    auto_create_domains: bool = Field(
        default=DEFAULT_OPTIONS.auto_create_domains,
        description="Create a domain when an ADMIN creates the first address in it. Off: such "
        "an address is refused.",
        json_schema_extra={"hint": "write on or off"},
    )
    domain_max_users: int = Field(
        default=DEFAULT_OPTIONS.domain_max_users,
        ge=0,
        description="`maxUsers` of a new domain if `domainCreate` omits it; 0: any number.",
    )
    domain_max_addresses: int = Field(
        default=DEFAULT_OPTIONS.domain_max_addresses,
        ge=0,
        description="`maxAddresses` of a new domain if `domainCreate` omits it; 0: any number.",
    )
    domain_default_user_quota: ByteSize | None = Field(
        default=DEFAULT_OPTIONS.domain_default_user_quota,
        description="`defaultUserQuota` if `domainCreate` omits it; 0: unlimited.",
        json_schema_extra=table_default("MERGANSER_DEFAULT_QUOTA"),
    )
    domain_max_user_quota: ByteSize = Field(
        default=DEFAULT_OPTIONS.domain_max_user_quota,
        description="`maxUserQuota` of a new domain if `domainCreate` omits it; 0: unlimited.",
    )
    domain_quota: ByteSize = Field(
        default=DEFAULT_OPTIONS.domain_quota,
        description="`quota` of a new domain if `domainCreate` omits it; 0: unlimited.",
    )
    dns_resolver: str | None = Field(
        default=DEFAULT_OPTIONS.dns_resolver,
        pattern=HOST_PORT_PATTERN,
        description="Name server for every DNS lookup, also of hosts that receive webhooks and "
        "push messages, as in 127.0.0.1:53. The system looks up the hosts of the operator's own "
        "settings: database, object storage, message bus, scanners, ACME directory, range service, "
        "collector of traces.",
        json_schema_extra={
            **table_default("those of the system"),
            "hint": "write address:port, as in 127.0.0.1:53 or [::1]:53",
        },
    )
    default_quota: ByteSize = Field(
        default=DEFAULT_OPTIONS.default_quota,
        description="Storage of a user, where neither user nor domain says more; 0 is unlimited.",
    )
    message_max: ByteSize = Field(
        default=DEFAULT_OPTIONS.message_max, description="Largest message we take."
    )
    upload_max: ByteSize = Field(
        default=DEFAULT_OPTIONS.upload_max, description="Largest file in an upload."
    )
    disk_reserve: ByteSize = Field(
        default=DEFAULT_OPTIONS.disk_reserve,
        description="Free space that stays on the disk of the data folder when mail and uploads "
        "come in. With less, mail is answered 452 and uploads 507, so that the store can still "
        "be written.",
    )
    search_text: ByteSize = Field(
        default=DEFAULT_OPTIONS.search_text,
        ge=1024,
        le=16 << 20,
        description="Characters of a message that are searched by words; another number holds "
        "for mail that comes later.",
    )
    files_quota: ByteSize = Field(
        default=DEFAULT_OPTIONS.files_quota,
        description="Storage of a user for files that are shared or wait for a draft; 0 is "
        "unlimited.",
    )
    files_for: Duration = Field(
        default=DEFAULT_OPTIONS.files_for,
        description="Files that are not shared, and were not fetched for so long, are removed; "
        "0 s: never.",
    )
    exports_for: Duration = Field(
        default=DEFAULT_OPTIONS.exports_for,
        description="How long an exported account can be fetched; then it is removed.",
    )
    import_folder: Path | None = Field(
        default=DEFAULT_OPTIONS.import_folder,
        description="Folder on the server whose files ROOT may have brought into accounts by "
        "their path; without it nobody may.",
    )
    max_mailboxes: int = Field(
        default=DEFAULT_OPTIONS.max_mailboxes, ge=5, description="Folders of a user."
    )
    share_across_domains: bool = Field(
        default=DEFAULT_OPTIONS.share_across_domains,
        description="Users may share folders with users of other domains; off: within their own. "
        "On, they learn which addresses there are.",
        json_schema_extra={"hint": "write on or off"},
    )
    max_recipients: int = Field(
        default=DEFAULT_OPTIONS.max_recipients,
        ge=1,
        description="Recipients of a message that is sent.",
    )
    undo_window: Duration = Field(
        default=DEFAULT_OPTIONS.undo_window,
        description="How long a change to messages can be taken back.",
    )
    archive_for: Duration = Field(
        default=DEFAULT_OPTIONS.archive_for,
        description="How long deleted messages can be restored.",
    )
    restore_window: Duration = Field(
        default=DEFAULT_OPTIONS.restore_window,
        description="How old a backup of the database can be when it is restored: objects that no "
        "row names any more are kept for so long. 0 s: they are removed after a day.",
    )
    receipts_for: Duration = Field(
        default=DEFAULT_OPTIONS.receipts_for,
        description="How long a repeated delivery is known, and not stored twice.",
    )
    replays_for: Duration = Field(
        default=DEFAULT_OPTIONS.replays_for,
        description="How long the answer to an idempotency key is kept.",
    )
    journal_days: int = Field(
        default=DEFAULT_OPTIONS.journal_days,
        ge=1,
        description="Days that changes stay readable for clients that come back.",
    )
    journal_events: int = Field(
        default=DEFAULT_OPTIONS.journal_events,
        ge=1000,
        description="Changes that stay readable in one account.",
    )
    changes_overflow: int = Field(
        default=DEFAULT_OPTIONS.changes_overflow,
        ge=500,
        description="Changes that a subscription may be behind; who is further reads afresh.",
    )
    authlog_for: Duration = Field(
        default=DEFAULT_OPTIONS.authlog_for,
        description="How long security events are kept; 0 s: none are written.",
    )
    trace_for: Duration = Field(
        default=DEFAULT_OPTIONS.trace_for,
        description="How long it is kept which way messages took; 0 s: nothing is written.",
    )
    adminlog_for: Duration = Field(
        default=DEFAULT_OPTIONS.adminlog_for,
        ge=timedelta(days=1),
        description="How long it is kept who changed what of others, and which settings.",
    )
    webhooks_private: bool = Field(
        default=DEFAULT_OPTIONS.webhooks_private,
        description="Webhooks may be posted to private, loopback and link-local addresses, too. "
        "On, an administrator of a domain can make the server call services of your own network.",
        json_schema_extra={"hint": "write on or off"},
    )
    push_private: bool = Field(
        default=DEFAULT_OPTIONS.push_private,
        description="Push channels may lead to private, loopback and link-local addresses, too. "
        "On, every user can make the server call services of your own network.",
        json_schema_extra={"hint": "write on or off"},
    )
    connectors_private: bool = Field(
        default=DEFAULT_OPTIONS.connectors_private,
        description="Mail may be fetched from private, loopback and link-local addresses, too, and "
        "without encryption. On, every user can make the server call services of your own network.",
        json_schema_extra={"hint": "write on or off"},
    )
    connectors_at_once: int = Field(
        default=DEFAULT_OPTIONS.connectors_at_once,
        ge=1,
        le=256,
        description="Runs of connectors at once; those that only listen are not counted.",
    )
    connectors_per_host: int = Field(
        default=DEFAULT_OPTIONS.connectors_per_host,
        ge=1,
        le=64,
        description="Of these, with one host elsewhere.",
    )
    push_contact: str = Field(
        default=DEFAULT_OPTIONS.push_contact,
        pattern=r"^((mailto:[^@\s]+@|https://)[^@\s]+)?$",
        description="Whom push services of browsers turn to (RFC 8292): mailto:… or https://…; "
        "nothing = postmaster at the host name.",
    )
    pushover_url: str = Field(
        default=DEFAULT_OPTIONS.pushover_url,
        pattern=r"^https?://[^@\s]+$",
        description="Where pushes by Pushover are posted: a proxy of your own, or the service.",
    )
    bulk: int = Field(
        default=DEFAULT_OPTIONS.bulk,
        ge=1,
        description="Messages that one request changes at once; more become a task.",
    )
    drain: Duration = Field(
        default=timedelta(0),
        description="How long to answer as before once told to stop, while `/health/ready` says "
        "503: time for a load balancer to turn elsewhere.",
    )
    metrics: Literal["key", "loopback", "off"] = Field(
        default="key",
        description="Who may read `/metrics`: key, with `MERGANSER_METRICS_KEY` or a credential "
        "of an ADMIN; loopback, also whoever asks from this machine, which no proxy may pass "
        "on then; off, nobody.",
        json_schema_extra={"hint": "write key, loopback or off"},
    )
    metrics_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="A bearer key for `/metrics` and nothing else, at least 16 characters.",
        json_schema_extra={"hint": "it needs 16 characters at least"},
    )
    otlp: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@/]+(/[^\s@]*)?$",
        description="Where traces and metrics are sent by OTLP over HTTP, as in "
        "http://127.0.0.1:4318; needs the extra `telemetry`. The usual `OTEL_…` variables are "
        "heeded too.",
        json_schema_extra={
            "hint": "write http://host:port, and keys into OTEL_EXPORTER_OTLP_HEADERS"
        },
    )
    trace_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of operations that are traced, where there is somewhere to send them.",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto",
        description="json or text lines on stderr; auto, text on a terminal and else json.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="DEBUG, INFO, WARNING or ERROR."
    )
    fault: str | None = Field(
        default=None,
        pattern=FAULT_PATTERN,
        description="For crash tests: die at the nth passing of a place, as in commit:3.",
        json_schema_extra={"hidden": True, "hint": "write place:n"},
    )

    @field_validator("wakeups")
    @classmethod
    def _check_wakeups(cls, setting: SecretStr) -> SecretStr:
        bus = setting.get_secret_value()
        scheme, mark, rest = bus.partition("://")
        if not (scheme in BUS_URL_SCHEMES and rest if mark else bus in BUS_NAMES):
            raise ValueError(scheme)
        return setting

    @field_validator("dns_resolver")
    @classmethod
    def _check_dns_resolver(cls, address: str | None) -> str | None:
        host, _, port = (address or "127.0.0.1:53").rpartition(":")
        ip_address(host.removeprefix("[").removesuffix("]"))
        if not 0 < int(port) < 1 << 16:
            raise ValueError(port)
        return address

    def options(self) -> Options:
        """The values that models, mail and resolvers use."""
        return Options(**{each.name: getattr(self, each.name) for each in fields(Options)})


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises CommandError with the name of the variable if one is unknown or invalid.
    """
    variables = [(PREFIX + name).upper() for name in Settings.model_fields]
    for name in os.environ:
        if name.startswith(PREFIX) and name not in variables:
            similar_name = get_close_matches(name, variables, 1, 0.0)[0]
            raise CommandError(
                f"{name} is no setting of ours; did you mean {similar_name}?", exit_code=EXIT_USAGE
            )
    try:
        return Settings()
    except ValidationError as problem:
        raise CommandError(_validation_message(problem), exit_code=EXIT_USAGE) from problem


def _validation_message(error: ValidationError) -> str:
    """A sentence about the first invalid setting, without its value, which may be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0])
    extra = Settings.model_fields[field].json_schema_extra
    hint = extra.get("hint") if isinstance(extra, dict) else None
    reason = str(hint or first["msg"]).removeprefix("Value error, ")
    return f"{(PREFIX + field).upper()} is wrong: {reason[:1].lower()}{reason[1:]}"


def settings_table(settings_class: type[Settings] = Settings) -> str:
    """The settings as a Markdown table, which docs/settings.md has."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    field_infos = settings_class.model_fields
    grouped_classes = (
        *(AccountSettings, IncomingSettings, SmtpSettings, OutgoingSettings, SigningSettings),
        *(ScannerSettings, HttpSettings),
    )
    fields_of_parts = [
        part.model_fields for part in grouped_classes
    ]  # a stable sort: other settings first, then part by part
    for name in sorted(field_infos, key=lambda name: [name in each for each in fields_of_parts]):
        field_info = field_infos[name]
        extra = (
            field_info.json_schema_extra if isinstance(field_info.json_schema_extra, dict) else {}
        )
        if not extra.get("hidden"):
            default = extra.get("default") or _default_text(field_info)
            lines.append(f"| `{(PREFIX + name).upper()}` | {default} | {field_info.description} |")
    return "\n".join(lines)


def _default_text(field_info: FieldInfo) -> str:
    value = field_info.default
    if value in (None, "", ()):
        return "none"
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, tuple) and isinstance(value[0], timedelta):
        return ", ".join(map(format_duration, value))
    if any(
        isinstance(each, BeforeValidator) and each.func is parse_size
        for each in field_info.metadata
    ):
        return format_size(value)
    return str(value)

"""All settings of the environment. Only this module reads the variables."""

import os
from collections.abc import Sequence
from dataclasses import fields
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.backups import BackupSettings
from merganser.settings.blob_cache import BlobCacheSettings
from merganser.settings.config_file import ConfigLine, InvalidConfigFile, read_config_file
from merganser.settings.http import HttpSettings
from merganser.settings.identity_providers import IdentityProviderSettings
from merganser.settings.incoming_mail import IncomingSettings
from merganser.settings.log_store import LogStoreSettings
from merganser.settings.observability import ObservabilitySettings
from merganser.settings.outgoing_mail import OutgoingSettings
from merganser.settings.retention import RetentionSettings
from merganser.settings.scanners import ScannerSettings
from merganser.settings.signatures import SigningSettings
from merganser.settings.smtp import SmtpSettings
from merganser.settings.suggestions import suggest_settings
from merganser.settings.toml_config import VARIABLE_PREFIX
from merganser.settings.users import AccountSettings
from merganser.settings.value_types import (
    DEFAULT_OPTIONS,
    HOST_NAME_PATTERN,
    HOST_PORT_PATTERN,
    ByteSize,
    Duration,
    WebOriginList,
    table_default,
)
from models.runtime.options import Options
from models.runtime.renamed_settings import RENAMED_VARIABLES, rename_message
from models.store.postgres.address import is_postgres, parse_postgres_address

PREFIX = VARIABLE_PREFIX
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
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
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in DRIVER_BY_SCHEME:
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
    RetentionSettings,
    ObservabilitySettings,
    LogStoreSettings,
    BlobCacheSettings,
    BackupSettings,
    IdentityProviderSettings,
):
    """All settings. Each is the environment variable `MERGANSER_` with the name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    config: Path | None = Field(
        default=None,
        description="File with more settings, at most 256 KiB. A name that ends with .toml means "
        "TOML: the keys are the names of this list in lower case, without MERGANSER_. Other files "
        "have lines VARIABLE=value. Variables of the environment precede it. `configReload` and "
        "SIGHUP read it again.",
    )
    data: Path = Field(
        default=Path("var"),
        description="Folder for the database, object store, spool files and keys of this server.",
    )
    database_url: DatabaseUrl = Field(
        default_factory=lambda values: f"sqlite+aiosqlite:///{values['data']}/merganser.db",
        description="Database: sqlite:///path, or a connection URI of PostgreSQL with the "
        "parameters that libpq documents, such as "
        "postgresql://user:password@host/database?sslmode=verify-full.",
        json_schema_extra=table_default("sqlite:///{data}/merganser.db"),
    )
    object_store_url: str = Field(
        default_factory=lambda values: f"{values['data']}/blobs",
        description="Object store for messages, attachments and files: a folder, or an S3 bucket "
        "as in s3://bucket/prefix?endpoint=https://s3.example.org&region=eu-west-1.",
        json_schema_extra=table_default("{data}/blobs"),
    )
    cold_object_store_url: str | None = Field(
        default=None,
        description="A second object store, to which `messageTierMove` moves messages. Same form "
        "as MERGANSER_OBJECT_STORE_URL. Keep it set as long as it has objects.",
    )
    event_bus_url: SecretStr = Field(
        default=SecretStr("auto"),
        description="How processes that share a database wake each other. process: not at all. "
        "unix: by sockets in {data}/bells, or unix:///folder. postgresql: by NOTIFY of the "
        "database, or postgresql://… of another. redis://…, rediss://…, nats://… or tls://…: by a "
        "Redis or NATS server. auto: unix with SQLite and postgresql with PostgreSQL.",
        json_schema_extra={
            **table_default("auto"),
            "hint": "write auto, process, unix, postgresql, or the URL of Redis or NATS",
        },
    )
    http_listen: str = Field(
        default="127.0.0.1:8025",
        pattern=HOST_PORT_PATTERN,
        description="Address on which GraphQL and HTTP listen: host:port.",
        json_schema_extra={"hint": "write host:port"},
    )
    lmtp_listen: str = Field(
        default="127.0.0.1:8024",
        pattern=HOST_PORT_PATTERN,
        description="Address on which LMTP listens: host:port.",
        json_schema_extra={"hint": "write host:port"},
    )
    bootstrap_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="A bearer key with the role ROOT, at least 16 characters. It works even if "
        "the database has no key.",
        json_schema_extra={"hint": "it needs 16 characters at least"},
    )
    signing_secret: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Secret that signs the URLs of downloads and uploads, at least 32 "
        "characters. Servers that share a database need the same secret.",
        json_schema_extra={
            **table_default("the file {data}/secret, made at first"),
            "hint": "it needs 32 characters at least",
        },
    )
    encryption_keys_file: Path | None = Field(
        default=None,
        description="File with the keys that encrypt stored secrets, such as TOTP secrets. Only "
        "the server's user may read it. Don't store it with backups of the database.",
        json_schema_extra=table_default("the file {data}/vault, made at first"),
    )
    hostname: str = Field(
        default=DEFAULT_OPTIONS.hostname,
        pattern=HOST_NAME_PATTERN,
        description="Name of this server in mail: in SMTP greetings, Message-IDs and reports.",
        json_schema_extra={"hint": "write a name such as mx.example.org"},
    )
    public_url: str = Field(
        default=DEFAULT_OPTIONS.public_url,
        pattern=r"^$|^https?://[^\s]+[^/\s]$",
        description="Prefix of the URLs that the server returns, as in https://mail.example.org. "
        "Without it they are paths only.",
        json_schema_extra={"hint": "write https://host, without a slash at its end"},
    )
    node_address: str | None = Field(
        default=None,
        pattern=HOST_PORT_PATTERN,
        description="Address at which load balancers reach HTTP of this server: host:port. It "
        "names the node of the server, so each server needs another one.",
        json_schema_extra={
            **table_default(
                "`MERGANSER_HOSTNAME`, or the name of the machine if it is localhost, with the "
                "port of `MERGANSER_HTTP_LISTEN`"
            ),
            "hint": "write host:port",
        },
    )
    cors_origins: WebOriginList = Field(
        default=(),
        description="Web origins that can call the server from a browser (CORS), separated by "
        "spaces, such as https://app.example.org. The port * allows all ports: http://localhost:*",
    )
    users_default_domain: str | None = Field(
        default=DEFAULT_OPTIONS.users_default_domain,
        pattern=HOST_NAME_PATTERN,
        description="Domain of the address of a new user whose username has no domain.",
        json_schema_extra={"hint": "write a domain such as example.org"},
    )
    auto_create_domains: bool = Field(
        default=DEFAULT_OPTIONS.auto_create_domains,
        description="Create a domain when an ADMIN creates the first address in it. If off, such "
        "an address is refused.",
        json_schema_extra={"hint": "write on or off"},
    )
    new_domain_max_users: int = Field(
        default=DEFAULT_OPTIONS.new_domain_max_users,
        ge=0,
        description="`maxUsers` of a new domain if `domainCreate` omits it. 0: unlimited.",
    )
    new_domain_max_addresses: int = Field(
        default=DEFAULT_OPTIONS.new_domain_max_addresses,
        ge=0,
        description="`maxAddresses` of a new domain if `domainCreate` omits it. 0: unlimited.",
    )
    new_domain_default_user_quota: ByteSize | None = Field(
        default=DEFAULT_OPTIONS.new_domain_default_user_quota,
        description="`defaultUserQuota` of a new domain if `domainCreate` omits it. 0: unlimited.",
        json_schema_extra=table_default("MERGANSER_USERS_DEFAULT_QUOTA"),
    )
    new_domain_max_user_quota: ByteSize = Field(
        default=DEFAULT_OPTIONS.new_domain_max_user_quota,
        description="`maxUserQuota` of a new domain if `domainCreate` omits it. 0: unlimited.",
    )
    new_domain_quota: ByteSize = Field(
        default=DEFAULT_OPTIONS.new_domain_quota,
        description="`quota` of a new domain if `domainCreate` omits it. 0: unlimited.",
    )
    dns_resolver: str | None = Field(
        default=DEFAULT_OPTIONS.dns_resolver,
        pattern=HOST_PORT_PATTERN,
        description="Name server for every DNS lookup, also of hosts that receive webhooks and "
        "push messages, as in 127.0.0.1:53. The system resolves the hosts in your own settings: "
        "database, object store, event bus, scanners, ACME directory, range service, trace "
        "collector.",
        json_schema_extra={
            **table_default("those of the system"),
            "hint": "write address:port, as in 127.0.0.1:53 or [::1]:53",
        },
    )
    users_default_quota: ByteSize = Field(
        default=DEFAULT_OPTIONS.users_default_quota,
        description="Storage of a user if neither the user nor the domain has a quota. 0: "
        "unlimited.",
    )
    message_max_size: ByteSize = Field(
        default=DEFAULT_OPTIONS.message_max_size,
        description="Largest message that is accepted, sent or stored.",
    )
    upload_max_size: ByteSize = Field(
        default=DEFAULT_OPTIONS.upload_max_size,
        description="Largest file in an upload.",
    )
    disk_reserve: ByteSize = Field(
        default=DEFAULT_OPTIONS.disk_reserve,
        description="Space that stays free on the disk of the data folder, so that the database "
        "can still be written. With less, mail is refused with 452 and uploads with "
        "507.",
    )
    search_max_characters: ByteSize = Field(
        default=DEFAULT_OPTIONS.search_max_characters,
        ge=1024,
        le=16 << 20,
        description="Largest number of characters of a message that full-text search finds. A new "
        "value applies to new messages.",
    )
    files_quota: ByteSize = Field(
        default=DEFAULT_OPTIONS.files_quota,
        description="Storage of a user for files that are shared or attached to a draft. 0: "
        "unlimited.",
    )
    import_folder: Path | None = Field(
        default=DEFAULT_OPTIONS.import_folder,
        description="Folder on the server whose files ROOT can import into accounts by path. "
        "Without it nobody can.",
    )
    mailboxes_max_per_user: int = Field(
        default=DEFAULT_OPTIONS.mailboxes_max_per_user,
        ge=5,
        description="Largest number of mailboxes of a user.",
    )
    share_across_domains: bool = Field(
        default=DEFAULT_OPTIONS.share_across_domains,
        description="Users can share mailboxes with users of other domains. They learn which "
        "addresses exist there. If off, only within their own domain.",
        json_schema_extra={"hint": "write on or off"},
    )
    submission_max_recipients: int = Field(
        default=DEFAULT_OPTIONS.submission_max_recipients,
        ge=1,
        description="Largest number of recipients of a message that is sent.",
    )
    webhooks_allow_private_networks: bool = Field(
        default=DEFAULT_OPTIONS.webhooks_allow_private_networks,
        description="Webhooks can use private, loopback and link-local addresses. If on, an "
        "administrator of a domain can make the server call services of your own network.",
        json_schema_extra={"hint": "write on or off"},
    )
    push_allow_private_networks: bool = Field(
        default=DEFAULT_OPTIONS.push_allow_private_networks,
        description="Push channels can use private, loopback and link-local addresses. If on, "
        "every user can make the server call services of your own network.",
        json_schema_extra={"hint": "write on or off"},
    )
    connectors_allow_private_networks: bool = Field(
        default=DEFAULT_OPTIONS.connectors_allow_private_networks,
        description="Connectors can fetch mail from private, loopback and link-local addresses, "
        "and without encryption. If on, every user can make the server call services of your own "
        "network.",
        json_schema_extra={"hint": "write on or off"},
    )
    connectors_max_runs: int = Field(
        default=DEFAULT_OPTIONS.connectors_max_runs,
        ge=1,
        le=256,
        description="Largest number of concurrent runs of connectors. One account "
        "has at most half of them. Runs that only wait for events (IMAP IDLE) don't count.",
    )
    connectors_max_runs_per_host: int = Field(
        default=DEFAULT_OPTIONS.connectors_max_runs_per_host,
        ge=1,
        le=64,
        description="Largest number of concurrent runs of connectors with one remote host.",
    )
    push_contact: str = Field(
        default=DEFAULT_OPTIONS.push_contact,
        pattern=r"^((mailto:[^@\s]+@|https://)[^@\s]+)?$",
        description="Contact for the push services of browsers (RFC 8292): mailto:… or "
        "https://…. Default: postmaster at the host name.",
    )
    pushover_url: str = Field(
        default=DEFAULT_OPTIONS.pushover_url,
        pattern=r"^https?://[^@\s]+$",
        description="URL to which Pushover messages are posted: the service, or your own proxy.",
    )
    bulk_max_items: int = Field(
        default=DEFAULT_OPTIONS.bulk_max_items,
        ge=1,
        description="Largest number of messages that one request changes directly; more become a "
        "task. Also the largest number of objects that most mutations accept in one "
        "list.",
    )
    shutdown_drain: Duration = Field(
        default=timedelta(0),
        description="How long the server still answers requests after SIGTERM, while "
        "`/health/ready` returns 503, so that load balancers stop sending requests. 0 "
        "s: not at all.",
    )
    fault: str | None = Field(
        default=None,
        pattern=FAULT_PATTERN,
        description="For crash tests: the process kills itself when it reaches a fault point the "
        "nth time, as in commit:3.",
        json_schema_extra={"hidden": True, "hint": "write place:n"},
    )

    @field_validator("event_bus_url")
    @classmethod
    def _check_event_bus_url(cls, setting: SecretStr) -> SecretStr:
        bus = setting.get_secret_value()
        scheme, separator, rest = bus.partition("://")
        if not (scheme in BUS_URL_SCHEMES and rest if separator else bus in BUS_NAMES):
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
        return Options(**{field.name: getattr(self, field.name) for field in fields(Options)})


def read_settings() -> Settings:
    """Read the settings from the environment, and from the settings file if one is set.

    Raises CommandError with the name of the variable if one is unknown, renamed or invalid, and
    with the line of the settings file if it is from there.
    """
    variables = [(PREFIX + name).upper() for name in Settings.model_fields]
    renamed_variables = sorted(os.environ.keys() & RENAMED_VARIABLES.keys())
    if renamed_variables:
        message = " ".join(map(rename_message, renamed_variables))
        raise CommandError(message, exit_code=EXIT_USAGE)
    for name in os.environ:
        if name.startswith(PREFIX) and name not in variables:
            raise CommandError(_unknown_setting_message(name), exit_code=EXIT_USAGE)
    lines = _read_lines_of_config_file(variables)
    values: dict[str, Any] = {
        variable.removeprefix(PREFIX).lower(): line.value
        for variable, line in lines.items()
        if line.value and not os.environ.get(variable)
    }
    try:
        return Settings(**values)
    except ValidationError as problem:
        field = str(problem.errors(include_url=False, include_input=False)[0]["loc"][0])
        place = ""
        if field in values:
            line = lines[(PREFIX + field).upper()]
            place = f"{os.environ[CONFIG_VARIABLE]}, line {line.line_number}: "
        message = place + _validation_message(problem)
        raise CommandError(message, exit_code=EXIT_USAGE) from problem


def _read_lines_of_config_file(variables: Sequence[str]) -> dict[str, ConfigLine]:
    """Read the settings file; empty if none is set.

    Raises CommandError if it can't be read, or has a variable that is not one of these.
    """
    path = os.environ.get(CONFIG_VARIABLE)
    if not path:
        return {}
    try:
        lines = read_config_file(Path(path))
    except InvalidConfigFile as problem:
        raise CommandError(str(problem), exit_code=EXIT_USAGE) from problem
    for variable, line in lines.items():
        place = f"{path}, line {line.line_number}: "
        if variable in RENAMED_VARIABLES:
            raise CommandError(place + rename_message(variable), exit_code=EXIT_USAGE)
        if variable == CONFIG_VARIABLE:
            text = f"{place}{CONFIG_VARIABLE} must be a variable of the environment."
            raise CommandError(text, exit_code=EXIT_USAGE)
        if variable not in variables:
            raise CommandError(place + _unknown_setting_message(variable), exit_code=EXIT_USAGE)
    return lines


def _unknown_setting_message(variable: str) -> str:
    """A sentence about an unknown variable, with the settings that it may mean."""
    descriptions = {
        name: field.description or ""
        for name, field in Settings.model_fields.items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("hidden"))
    }
    names = [
        (PREFIX + name).upper()
        for name in suggest_settings(variable.removeprefix(PREFIX), descriptions)
    ]
    choice = " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    question = f" Did you mean {choice}?" if choice else ""
    return f"{variable} is not a setting.{question} `merganser settings` lists all settings."


def _validation_message(error: ValidationError) -> str:
    """A sentence about the first invalid setting, without its value, which may be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0])
    extra = Settings.model_fields[field].json_schema_extra
    hint = extra.get("hint") if isinstance(extra, dict) else None
    reason = str(hint or first["msg"]).removeprefix("Value error, ")
    return f"{(PREFIX + field).upper()} is wrong: {reason[:1].lower()}{reason[1:]}"

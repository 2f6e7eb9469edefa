"""Addresses of PostgreSQL as libpq documents them: connection URIs, service files, environment.

PostgreSQL manual, section 34.1.1 (connection strings) and 34.1.2 (parameter key words).
"""

import configparser
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

SCHEMES = ("postgres", "postgresql", "postgresql+asyncpg")
DEFAULT_PORT = 5432
SOCKET_FOLDERS = ("/run/postgresql", "/var/run/postgresql", "/tmp")  # noqa: S108 - libpq's own
SESSION_KINDS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
# environment variable of libpq -> parameter
ENVIRONMENT_PARAMETERS = {
    "PGHOST": "host",
    "PGHOSTADDR": "hostaddr",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGPASSFILE": "passfile",
    "PGREQUIREAUTH": "require_auth",
    "PGCHANNELBINDING": "channel_binding",
    "PGSERVICE": "service",
    "PGSERVICEFILE": "servicefile",
    "PGOPTIONS": "options",
    "PGAPPNAME": "application_name",
    "PGSSLMODE": "sslmode",
    "PGSSLNEGOTIATION": "sslnegotiation",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGSSLCERTMODE": "sslcertmode",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCRL": "sslcrl",
    "PGSSLCRLDIR": "sslcrldir",
    "PGSSLSNI": "sslsni",
    "PGREQUIREPEER": "requirepeer",
    "PGSSLMINPROTOCOLVERSION": "ssl_min_protocol_version",
    "PGSSLMAXPROTOCOLVERSION": "ssl_max_protocol_version",
    "PGGSSENCMODE": "gssencmode",
    "PGKRBSRVNAME": "krbsrvname",
    "PGGSSLIB": "gsslib",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGCLIENTENCODING": "client_encoding",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGLOADBALANCEHOSTS": "load_balance_hosts",
}

ValueCheck = Callable[[str], bool]


class PostgresAddressError(ValueError):
    """An address of PostgreSQL that can't be used. The message names the parameter."""


def _is_one_of(*values: str) -> ValueCheck:
    return lambda value: value in values


def _is_number(value: str) -> bool:
    return bool(re.fullmatch(r"-?[0-9]{1,9}", value))


def _is_any(_value: str) -> bool:
    return True


IS_SWITCH = _is_one_of("0", "1")
# parameter -> check of its value, and the allowed values for messages
TEXT_PARAMETERS = (
    "host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service", "servicefile",
    "options", "application_name", "fallback_application_name", "sslcert", "sslkey", "sslpassword",
    "sslrootcert", "sslcrl", "sslcrldir", "sslkeylogfile", "requirepeer", "krbsrvname",
)  # fmt: skip
NUMBER_PARAMETERS = (
    "connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count",
    "tcp_user_timeout",
)  # fmt: skip
PARAMETERS: Mapping[str, tuple[ValueCheck, str]] = {
    **dict.fromkeys(TEXT_PARAMETERS, (_is_any, "any text")),
    **dict.fromkeys(NUMBER_PARAMETERS, (_is_number, "a whole number")),
    **dict.fromkeys(("keepalives", "sslcompression", "sslsni"), (IS_SWITCH, "0 or 1")),
    "requiressl": (IS_SWITCH, "0 or 1"),
    "ssl": (_is_one_of("true"), "true; write sslmode instead"),
    "sslmode": (_is_one_of(*SSL_MODES), ", ".join(SSL_MODES)),
    "sslnegotiation": (_is_one_of("postgres", "direct"), "postgres or direct"),
    "sslcertmode": (_is_one_of("allow", "disable"), "allow or disable; require can't be checked"),
    "ssl_min_protocol_version": (_is_one_of("", *TLS_VERSIONS), ", ".join(TLS_VERSIONS)),
    "ssl_max_protocol_version": (_is_one_of("", *TLS_VERSIONS), ", ".join(TLS_VERSIONS)),
    "target_session_attrs": (_is_one_of(*SESSION_KINDS), ", ".join(SESSION_KINDS)),
    "load_balance_hosts": (_is_one_of("disable", "random"), "disable or random"),
    "channel_binding": (_is_one_of("disable", "prefer", "require"), "disable, prefer or require"),
    "gssencmode": (
        _is_one_of("disable", "prefer"),
        "disable or prefer; there is no GSS encryption",
    ),
    "gssdelegation": (_is_one_of("0"), "0; credentials are never delegated"),
    "gsslib": (_is_one_of("gssapi"), "gssapi"),
    "client_encoding": (
        lambda value: value.lower().replace("-", "") in {"", "auto", "utf8"},
        "UTF8; Merganser speaks no other",
    ),
    "min_protocol_version": (_is_one_of("3.0"), "3.0"),
    "max_protocol_version": (_is_one_of("3.0", "3.2", "latest"), "3.0, 3.2 or latest"),
    "require_auth": (_is_one_of(""), "empty; the method of authentication can't be checked"),
    "replication": (
        _is_one_of("false", "off", "no", "0"),
        "false; a replication connection is no store",
    ),
}


@dataclass(frozen=True, slots=True)
class PostgresHost:
    """A server to try: a host name with a port, or a folder with a Unix socket."""

    name: str
    port: int
    address: str = ""  # `hostaddr`: the address to connect to; the certificate must name `name`

    @property
    def is_socket(self) -> bool:
        """True if this is a Unix socket."""
        return not self.address and self.name.startswith(("/", "@"))


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """The servers, and the parameters of libpq that were given."""

    hosts: tuple[PostgresHost, ...]
    parameters: Mapping[str, str] = field(repr=False)

    def get(self, name: str, default: str = "") -> str:
        """Return the value of a parameter, or `default` if it is absent or empty."""
        return self.parameters.get(name) or default

    def get_number(self, name: str, default: int) -> int:
        """Return the value of a parameter that is a number."""
        return int(self.get(name, str(default)))

    @property
    def sslmode(self) -> str:
        """The effective `sslmode` of libpq.

        `channel_binding=require` and `sslrootcert=system` imply verify-full. The driver can't bind
        a SCRAM exchange to the TLS channel; a verified certificate protects against the same
        attack, a server in the middle.
        """
        if self.get("channel_binding") == "require" or self.get("sslrootcert") == "system":
            return "verify-full"
        fallback = "require" if self.get("requiressl") == "1" or self.get("ssl") else "prefer"
        return self.get("sslmode", fallback)

    @property
    def public_text(self) -> str:
        """The address for people, without any secret."""
        user = f"{self.get('user')}@" if self.get("user") else ""
        hosts = ",".join(f"{host.name}:{host.port}" for host in self.hosts)
        return f"postgresql://{user}{hosts}/{self.get('dbname')}"


def is_postgres(url: str) -> bool:
    """True if the URL of a database names PostgreSQL."""
    return url.partition("://")[0] in SCHEMES


def parse_postgres_address(
    url: str, environment: Mapping[str, str] | None = None
) -> PostgresAddress:
    """Parse a connection URI.

    The URI has precedence over the service file, and the service file over the environment. Raises
    PostgresAddressError with a message that contains no secret.
    """
    environment = os.environ if environment is None else environment
    uri_parameters = _uri_parameters(url)
    defaults = {
        name: environment[key]
        for key, name in ENVIRONMENT_PARAMETERS.items()
        if environment.get(key)
    }
    if (
        "host" in uri_parameters or "hostaddr" in uri_parameters
    ):  # a host of the environment has its own address
        for name in ("host", "hostaddr"):
            defaults.pop(name, None)
    service = uri_parameters.get("service") or defaults.get("service")
    of_service = (
        _read_service_file_section(service, {**defaults, **uri_parameters}, environment)
        if service
        else {}
    )
    parameters = {**defaults, **of_service, **uri_parameters}
    for name, value in parameters.items():
        _require_usable_parameter(name, value)
    address = PostgresAddress(_hosts_from_parameters_or_local(parameters), parameters)
    _require_compatible_tls_parameters(address)
    return address


def _require_compatible_tls_parameters(address: PostgresAddress) -> None:
    """Check that the parameters of TLS fit together. Raises PostgresAddressError."""
    ssl_mode = address.get("sslmode")
    if address.get("sslrootcert") == "system" and ssl_mode not in {"", "verify-full"}:
        raise PostgresAddressError("sslrootcert=system needs sslmode=verify-full")
    if address.get("channel_binding") == "require" and ssl_mode in {"disable", "allow", "prefer"}:
        raise PostgresAddressError("channel_binding=require needs sslmode=require or stricter")
    weak = {"disable", "allow", "prefer"}
    if address.get("sslnegotiation") == "direct" and address.sslmode in weak:
        raise PostgresAddressError("sslnegotiation=direct needs sslmode=require or stricter")


def _require_usable_parameter(name: str, parameter_value: str) -> None:
    if name not in PARAMETERS:
        raise PostgresAddressError(f"the connection parameter {name!r} is unknown or can't be used")
    is_usable, words = PARAMETERS[name]
    if parameter_value and not is_usable(parameter_value):
        raise PostgresAddressError(f"the connection parameter {name} must be {words}")


def _uri_parameters(url: str) -> dict[str, str]:
    """Return the parameters of a URI, by their names in libpq."""
    scheme, delimiter, rest = url.partition("://")
    if not delimiter or scheme not in SCHEMES:
        raise PostgresAddressError("write postgresql://user:password@host/database")
    rest, _, query = rest.partition("?")
    host_list, _, database = rest.partition("/")
    user_part, at, host_part = host_list.rpartition("@")
    parameters: dict[str, str] = {}
    if at:
        user, colon, password = user_part.partition(":")
        parameters |= {"user": _percent_decode(user, "user")} if user else {}
        parameters |= (
            {"password": _percent_decode(password, "password")} if colon and password else {}
        )
    if database:
        parameters["dbname"] = _percent_decode(database, "dbname")
    if host_part:
        parameters |= _host_parameters(host_part)
    for pair in query.split("&") if query else ():
        name, delimiter, value = pair.partition("=")
        name = _percent_decode(name, "name")
        if not delimiter:
            raise PostgresAddressError(
                f"the connection parameter {name!r} has no value: write {name}=…"
            )
        if value or name not in parameters:
            name = "dbname" if name == "database" else name
            parameters[name] = _percent_decode(value, name)
    return parameters


def _host_parameters(text: str) -> dict[str, str]:
    """Return `host` and `port` of the hosts before the path, as in a:1,[::1]:2,c."""
    names, ports = [], []
    for part in text.split(","):
        matched = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?", part)
        if matched is None:
            raise PostgresAddressError(
                "a host or port in the address can't be read: write host:port"
            )
        name, port = matched.groups()
        if name.startswith("["):
            name = name[1:-1]
        names.append(_percent_decode(name, "host"))
        ports.append(port or "")
    hosts = {"host": ",".join(names)} if any(names) else {}
    return hosts | ({"port": ",".join(ports)} if any(ports) else {})


def _percent_decode(text: str, name: str) -> str:
    """Decode a percent-encoded part.

    Raises PostgresAddressError if it is not UTF-8, has a NUL or a bad escape.
    """
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise PostgresAddressError(
            f"the {name} has a % that begins no escape: write %25 for a percent sign"
        )
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise PostgresAddressError(f"the {name} is not UTF-8 after percent-decoding") from None
    if "\0" in decoded:
        raise PostgresAddressError(f"the {name} must not have %00")
    return decoded


def _hosts_from_parameters_or_local(parameters: Mapping[str, str]) -> tuple[PostgresHost, ...]:
    names = parameters["host"].split(",") if parameters.get("host") else []
    addresses = parameters["hostaddr"].split(",") if parameters.get("hostaddr") else []
    if names and addresses and len(names) != len(addresses):
        raise PostgresAddressError("host and hostaddr must name the same number of servers")
    if not names and not addresses:
        names = [next((folder for folder in SOCKET_FOLDERS if Path(folder).is_dir()), "localhost")]
    host_count = max(len(names), len(addresses))
    ports = [_parse_port_or_default(text) for text in (parameters.get("port") or "").split(",")]
    if len(ports) == 1:
        ports *= host_count
    if len(ports) != host_count:
        raise PostgresAddressError(
            f"port must be one number, or one for each of the {host_count} hosts"
        )
    names = [name.strip() or "localhost" for name in names] or addresses
    addresses = addresses or [""] * host_count
    host_parts = zip(names, ports, addresses, strict=True)
    return tuple(PostgresHost(name, port, address.strip()) for name, port, address in host_parts)


def _parse_port_or_default(text: str) -> int:
    text = text.strip()
    if not text:
        return DEFAULT_PORT
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise PostgresAddressError("port must be a number from 1 to 65535")
    return int(text)


def _read_service_file_section(
    service_name: str, parameters: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the parameters of a section of the service file."""
    home_folder = environment.get("HOME")
    folder = environment.get("PGSYSCONFDIR")
    own_file = parameters.get("servicefile") or (
        f"{home_folder}/.pg_service.conf" if home_folder else ""
    )
    for path in filter(None, (own_file, f"{folder}/pg_service.conf" if folder else "")):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            read_paths = parser.read(path)
        except (configparser.Error, UnicodeDecodeError):
            raise PostgresAddressError(f"the service file {path} can't be read") from None
        if read_paths and service_name in parser:
            return dict(parser[service_name])
    raise PostgresAddressError(f"no service file defines the service {service_name!r}")

"""Validate the fields of connectors."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import idna

from mail.connectors.remote_server import PORTS, TOKEN_MECHANISMS
from mail.mailboxes import paths
from mail.network import outbound_http
from mail.network.outbound_http import ascii_host, require_public_host_name
from mail.text.bounded_regex import BoundedRegex
from models.connectors import AuthMechanism, ConnectorProtocol, ConnectorSecurity
from models.errors import InvalidInput
from models.quantities import describe_duration
from models.runtime.options import Options
from models.validation_constraints import ValidationConstraint
from resolvers import sql_text
from resolvers.connectors import options as connector_options

MAX_NAME_LENGTH = 255  # characters
MAX_SECRET_LENGTH = 8192  # characters: tokens are long
MAX_SCOPE_LENGTH = 1000  # characters
MIN_INTERVAL = timedelta(minutes=4)  # between two runs; more than that
MAX_INTERVAL = timedelta(days=30)
MAX_AGE = timedelta(days=36_500)
TIMEOUT_RANGE = (timedelta(seconds=1), timedelta(hours=1))
MAX_REWRITES = 50
POP3_MECHANISMS = frozenset(AuthMechanism) - {AuthMechanism.CRAM_MD5}

ColumnValues = dict[str, Any]


def validate_connector_fields(
    fields: Mapping[str, Any], stored_fields: Mapping[str, Any], options: Options
) -> ColumnValues:
    """Return the given columns in stored form, checked together with the stored ones.

    Columns that depend on others are returned too: `custom_options` always, `port` if it is missing
    or if protocol or security change, and `name` if it is empty.

    Raises InvalidInput. The path of errors of the connection begins with `server`, as in inputs.
    """
    values: ColumnValues = {}
    for name, value in fields.items():
        values[name] = _VALIDATORS[name](value, options) if name in _VALIDATORS else value
    all_fields = {**stored_fields, **values}
    if all_fields["protocol"] not in (ConnectorProtocol.IMAP, ConnectorProtocol.POP3):
        raise InvalidInput(
            "The protocol must be IMAP or POP3.",
            constraint=ValidationConstraint.UNSUPPORTED,
            path=["server", "protocol"],
        )
    is_pop3 = all_fields["protocol"] is ConnectorProtocol.POP3
    values["custom_options"] = connector_options.validate_connector_options(
        all_fields.get("custom_options") or (), is_pop3=is_pop3
    )
    protocol_and_security = all_fields["protocol"], all_fields["security"]
    if all_fields.get("port") is None or (
        "port" not in values and protocol_and_security != _protocol_and_security(stored_fields)
    ):
        values["port"] = PORTS[protocol_and_security]
    _require_compatible_fields(all_fields, options)
    if not all_fields.get("name"):
        values["name"] = f"{all_fields['username']}@{all_fields['host']}"[:MAX_NAME_LENGTH]
    return values


def _protocol_and_security(fields: Mapping[str, Any]) -> tuple[Any, Any]:
    return fields.get("protocol"), fields.get("security")


def _require_compatible_fields(fields: Mapping[str, Any], options: Options) -> None:
    """Raise InvalidInput if fields exclude each other."""
    if (
        fields["security"] is ConnectorSecurity.NONE
        and not options.connectors_allow_private_networks
    ):
        text = "NONE requires the setting MERGANSER_CONNECTORS_ALLOW_PRIVATE_NETWORKS."
        raise InvalidInput(
            text, constraint=ValidationConstraint.SECURITY, path=["server", "security"]
        )
    is_pop3 = fields["protocol"] is ConnectorProtocol.POP3
    if is_pop3 and fields["auth_mechanism"] not in POP3_MECHANISMS:
        text = f"POP3 supports {', '.join(sorted(POP3_MECHANISMS))}."
        raise InvalidInput(
            text, constraint=ValidationConstraint.UNSUPPORTED, path=["server", "authMechanism"]
        )
    if fields.get("oauth") and fields["auth_mechanism"] not in TOKEN_MECHANISMS:
        text = f"OAuth requires the mechanism {' or '.join(sorted(TOKEN_MECHANISMS))}."
        raise InvalidInput(
            text, constraint=ValidationConstraint.EXCLUSIVE, path=["server", "oauth"]
        )
    if is_pop3 and fields.get("mirror_deletes"):
        text = "`mirrorDeletes` requires IMAP."
        raise InvalidInput(
            text, constraint=ValidationConstraint.UNSUPPORTED, path=["mirrorDeletes"]
        )
    if fields.get("mirror_deletes") and fields.get("source_retention") is not None:
        text = "`mirrorDeletes` can't be combined with `sourceRetention`."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["mirrorDeletes"])


def _validate_host(value: str, options: Options) -> str:
    try:
        host = ascii_host(value.strip())
    except (idna.IDNAError, UnicodeError):
        host = ""
    if (
        not host
        or len(host) > MAX_NAME_LENGTH
        or not all(sign.isalnum() or sign in ".-:" for sign in host)
    ):
        raise InvalidInput(
            "Must be a host name or an IP address.",
            constraint=ValidationConstraint.HOST,
            path=["server", "host"],
        )
    require_public_host_name(
        host, allow_private=options.connectors_allow_private_networks, error_path=["server", "host"]
    )
    return host


def _validate_port(value: int | None, _options: Options) -> int | None:
    if value is not None and not 0 < value < 1 << 16:
        raise InvalidInput(
            "The port must be a number from 1 to 65535.",
            constraint=ValidationConstraint.RANGE,
            path=["server", "port"],
        )
    return value


def _validate_name(value: str | None, _options: Options) -> str:
    return (
        sql_text.validated_trimmed_text(value or "", max_length=MAX_NAME_LENGTH, path=["name"])
        or ""
    )


def _validate_username(value: str, _options: Options) -> str:
    if not value or len(value) > MAX_NAME_LENGTH or not value.isprintable():
        raise InvalidInput(
            f"Must have from 1 to {MAX_NAME_LENGTH} characters.",
            constraint=ValidationConstraint.LENGTH,
            path=["server", "username"],
        )
    return value


def validate_secret(value: str, *path: str) -> str:
    """Return a password or token.

    Raises InvalidInput unless it is one line of 1 to 8,192 characters.
    """
    if not value or len(value) > MAX_SECRET_LENGTH or any(sign in value for sign in "\r\n\0"):
        text = f"Must have from 1 to {MAX_SECRET_LENGTH} characters on one line."
        raise InvalidInput(
            text, constraint=ValidationConstraint.LENGTH, path=path or ["server", "password"]
        )
    return value


def _validate_mechanism(value: str, _options: Options) -> AuthMechanism:
    if value not in {*AuthMechanism}:
        text = f"Must be one of {', '.join(AuthMechanism)}."
        raise InvalidInput(
            text,
            constraint=ValidationConstraint.UNKNOWN,
            path=["server", "authMechanism"],
            allowed_values=AuthMechanism,
        )
    return AuthMechanism(value)


def _validate_oauth(value: Mapping[str, Any] | None, options: Options) -> dict[str, Any] | None:
    """Return token endpoint, client and scope, without the client secret. Raises InvalidInput."""
    if value is None:
        return None
    outbound_http.parse_http_target(
        value["token_url"],
        allow_private=options.connectors_allow_private_networks,
        error_path=["server", "oauth", "tokenUrl"],
    )
    if not options.connectors_allow_private_networks and not value["token_url"].lower().startswith(
        "https://"
    ):
        raise InvalidInput(
            "The URL must begin with `https://`.",
            constraint=ValidationConstraint.URL,
            path=["server", "oauth", "tokenUrl"],
        )
    for name, label in (("client_id", "clientId"), ("scope", "scope")):
        text = value.get(name) or ""
        if (
            len(text) > MAX_SCOPE_LENGTH
            or not text.isprintable()
            or (name == "client_id" and not text)
        ):
            minimum = "1 to" if name == "client_id" else "at most"
            error_text = f"`{label}` has {minimum} {MAX_SCOPE_LENGTH} characters on one line."
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.LENGTH, path=["server", "oauth", label]
            )
    return {name: value.get(name) for name in ("token_url", "client_id", "scope")}


def _validate_target_domain(value: str | None, _options: Options) -> str | None:
    if not value:
        return None
    try:
        return ascii_host(value.strip())
    except (idna.IDNAError, UnicodeError):
        raise InvalidInput(
            "Must be a domain name.", constraint=ValidationConstraint.DOMAIN, path=["targetDomain"]
        ) from None


def _duration_validator(
    field_name: str, minimum: timedelta, maximum: timedelta, *, is_minimum_exclusive: bool = False
) -> Callable[[timedelta | None, Options], int | None]:
    """Create a validator that returns a duration in whole seconds; None for None.

    The validator raises InvalidInput if the duration is outside the limits.
    """

    def validate_duration(value: timedelta | None, _options: Options) -> int | None:
        if value is None:
            return None
        if not (minimum < value if is_minimum_exclusive else minimum <= value) or value > maximum:
            comparison = "longer than" if is_minimum_exclusive else "at least"
            least = f"{comparison} {describe_duration(minimum)}"
            text = f"The duration must be {least} and at most {describe_duration(maximum)}."
            raise InvalidInput(text, constraint=ValidationConstraint.RANGE, path=[field_name])
        return int(value.total_seconds())

    return validate_duration


def _validate_exclude(value: str | None, _options: Options) -> str | None:
    if not value:
        return None
    _require_valid_expression(value, ["exclude"])
    return value


def _require_valid_expression(pattern: str, path: Sequence[str], index: int | None = None) -> None:
    try:
        BoundedRegex(pattern, allow_slashes=False)
    except InvalidInput as problem:
        raise InvalidInput(
            problem.message, constraint=problem.constraint, path=path, index=index
        ) from None


def _validate_rewrites(
    value: Sequence[Mapping[str, str]], _options: Options
) -> list[dict[str, str]]:
    if len(value) > MAX_REWRITES:
        raise InvalidInput(
            f"At most {MAX_REWRITES} rewrites are allowed.",
            constraint=ValidationConstraint.MAX,
            path=["folderRewrites"],
        )
    for index, rewrite in enumerate(value):
        _require_valid_expression(rewrite["pattern"], ["folderRewrites", "pattern"], index)
        if (
            len(rewrite["replacement"]) > MAX_NAME_LENGTH
            or not rewrite["replacement"].isprintable()
        ):
            text = f"A name has at most {MAX_NAME_LENGTH} characters."
            path = ["folderRewrites", "replacement"]
            raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=path, index=index)
    return [dict(item) for item in value]


def _validate_target_path(value: str | None, _options: Options) -> str | None:
    return paths.validate_path(value, input_path=["targetFolder"]) if value else None


def _validate_rate(value: int | None, _options: Options) -> int | None:
    if value is not None and value < 1:
        text = "Must be at least 1 byte per second. Null means unlimited."
        raise InvalidInput(text, constraint=ValidationConstraint.MIN, path=["maxBytesPerSecond"])
    return value


_VALIDATORS: dict[str, Callable[[Any, Options], Any]] = {
    "name": _validate_name,
    "host": _validate_host,
    "port": _validate_port,
    "username": _validate_username,
    "auth_mechanism": _validate_mechanism,
    "interval": _duration_validator(
        "interval", MIN_INTERVAL, MAX_INTERVAL, is_minimum_exclusive=True
    ),
    "max_age": _duration_validator("maxAge", timedelta(minutes=1), MAX_AGE),
    "source_retention": _duration_validator("sourceRetention", timedelta(0), MAX_AGE),
    "remote_timeout": _duration_validator("remoteTimeout", *TIMEOUT_RANGE),
    "local_timeout": _duration_validator("localTimeout", *TIMEOUT_RANGE),
    "exclude": _validate_exclude,
    "folder_rewrites": _validate_rewrites,
    "target_folder": _validate_target_path,
    "max_bytes_per_second": _validate_rate,
    "oauth": _validate_oauth,
    "target_domain": _validate_target_domain,
}

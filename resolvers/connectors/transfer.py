"""Export connectors to files and import them; passwords are encrypted with a passphrase."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import select
from sqlmodel import col

from mail.archives.json_lines import AccountRecord
from mail.archives.secret_encryption import ArchiveCipher, ArchiveDecryptionError
from mail.connectors.remote_server import RemoteFailure
from models.connectors import Connector, ConnectorProtocol, ConnectorSecurity
from models.errors import Forbidden, InvalidInput, LimitReached, RequestError
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.users.roles import UserPermission
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.connectors import credentials
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors import validation as connector_validation
from resolvers.connectors.options import OptionName
from resolvers.context import Context
from resolvers.transfer.running_import import RunningImport
from resolvers.viewer import GuardRule

FILE_FIELDS: Mapping[str, tuple[str, type]] = {  # name in the file: column and type
    "name": ("name", str),
    "protocol": ("protocol", str),
    "host": ("host", str),
    "port": ("port", int),
    "security": ("security", str),
    "authMechanism": ("auth_mechanism", str),
    "username": ("username", str),
    "oauth": ("oauth", dict),
    "targetDomain": ("target_domain", str),
    "targetFolder": ("target_folder", str),
    "interval": ("interval", timedelta),
    "maxAge": ("max_age", timedelta),
    "maxBytesPerSecond": ("max_bytes_per_second", int),
    "exclude": ("exclude", str),
    "folderRewrites": ("folder_rewrites", list),
    "autoMapFolders": ("auto_map_folders", bool),
    "subscribeAll": ("subscribe_all", bool),
    "skipCrossDuplicates": ("skip_cross_duplicates", bool),
    "removeDuplicates": ("remove_duplicates", bool),
    "sourceRetention": ("source_retention", timedelta),
    "mirrorDeletes": ("mirror_deletes", bool),
    "remoteTimeout": ("remote_timeout", timedelta),
    "localTimeout": ("local_timeout", timedelta),
    "customOptions": ("custom_options", list),
    "spamCheck": ("spam_check", bool),
    "virusCheck": ("virus_check", bool),
    "applyFilters": ("apply_filters", bool),
    "active": ("active", bool),
}
OAUTH_FIELDS = {"tokenUrl": "token_url", "clientId": "client_id", "scope": "scope"}
REQUIRED_FIELDS = ("protocol", "host", "security", "authMechanism", "username")
SECRET_BOUND_FIELDS = ("protocol", "host", "port", "security", "authMechanism", "username", "oauth")
MAX_NUMBER = 1 << 40  # in a file
SWITCHED_OFF_NOTE = "The connector is inactive until a password is set."
IMPORT_GUARD = GuardRule(user_permission=UserPermission.CONNECTORS)

ConnectorRecord = Mapping[str, Any]


async def export_connectors(ctx: Context, user_id: int, passphrase: str | None) -> dict[str, Any]:
    """Return the connectors of an account and the lock of their passwords, as written to a file.

    Without a passphrase there are no passwords. A password that can't be decrypted is left out.
    """
    conditions = col(Connector.user_id) == user_id, col(Connector.is_one_time).is_(False)
    statement = select(*select_columns(Connector)).where(*conditions).order_by(col(Connector.id))
    rows = await ctx.read(statement)
    export = {"connectors": [_record_from_row(row) for row in rows]}
    if passphrase is None or not rows:
        return export
    lock = await asyncio.to_thread(ArchiveCipher.for_new_archive, passphrase)
    for row, entry in zip(rows, export["connectors"], strict=True):
        secret = _decrypt_secret_or_empty(ctx.environment, row)
        if secret.get("password"):
            secret_parts = {name: secret.get(name) for name in ("password", "client")}
            entry["secret"] = lock.encrypt(
                orjson.dumps(secret_parts).decode(), _secret_binding(entry)
            )
    return {**export, "connectorLock": lock.derivation_record()}


def _record_from_row(connector_row: ColumnRow) -> dict[str, Any]:
    record = {name: getattr(connector_row, column) for name, (column, _) in FILE_FIELDS.items()}
    if connector_row.oauth:
        record["oauth"] = {
            name: connector_row.oauth.get(column) for name, column in OAUTH_FIELDS.items()
        }
    return {name: value for name, value in record.items() if value is not None}


def _secret_binding(record: ConnectorRecord) -> bytes:
    """Return the fields that an encrypted password is bound to."""
    return orjson.dumps(
        [record.get(name) for name in SECRET_BOUND_FIELDS], option=orjson.OPT_SORT_KEYS
    )


def _decrypt_secret_or_empty(environment: Environment, connector_row: ColumnRow) -> dict[str, Any]:
    try:
        return credentials.decrypt_secret(environment, connector_row.id, connector_row.secret)
    except RemoteFailure:
        return {}


@dataclass(frozen=True, slots=True)
class _FileSecret:
    """A password and client secret of a file, or the reason why there is none."""

    password: str | None = None
    client_secret: str | None = None
    missing_reason: str = ""


async def import_connectors(
    writer: RunningImport, account: AccountRecord, passphrase: str | None
) -> None:
    """Create the connectors of a file, unless the account has them.

    Those without a password are switched off. Problems are added to the outcome of the import.
    """
    lock, missing_reason = None, "No passphrase was given."
    if account.connectors and account.lock and passphrase is not None:
        try:
            lock = await asyncio.to_thread(
                ArchiveCipher.from_derivation_record, account.lock, passphrase
            )
        except ArchiveDecryptionError as problem:
            missing_reason = str(problem)
    for record in account.connectors:
        secret = _decrypt_file_secret(record, lock, missing_reason)
        name = str(record.get("name") or record.get("host") or "")[:100]
        try:
            writer.ctx.viewer.require(IMPORT_GUARD)
            if not await _import_connector_and_return_has_password(writer.ctx, record, secret):
                writer.outcome.add_skipped(
                    f"password of connector {name}", f"{secret.missing_reason} {SWITCHED_OFF_NOTE}"
                )
        except RequestError as problem:
            writer.outcome.add_skipped(f"connector {name}", str(problem))
            if isinstance(problem, LimitReached | Forbidden):
                break


def _decrypt_file_secret(
    record: ConnectorRecord, lock: ArchiveCipher | None, missing_reason: str
) -> _FileSecret:
    """Decrypt the secret of a record, or return why it is missing."""
    if "secret" not in record:
        return _FileSecret(missing_reason="The archive contains no password.")
    if lock is None:
        return _FileSecret(missing_reason=missing_reason)
    try:
        parts = orjson.loads(lock.decrypt(record["secret"], _secret_binding(record)))
        if isinstance(parts["password"], str):
            return _FileSecret(parts["password"], parts["client"])
    except (ArchiveDecryptionError, orjson.JSONDecodeError, KeyError, TypeError):
        pass
    return _FileSecret(missing_reason="The passphrase does not decrypt the password.")


async def _import_connector_and_return_has_password(
    ctx: Context, record: ConnectorRecord, secret: _FileSecret
) -> bool:
    """Create a connector, or add the password to an existing one; True if it has a password now.

    Raises InvalidInput, LimitReached or Forbidden.
    """
    fields = _validated_fields_of_record(record)
    values = connector_validation.validate_connector_fields(fields, {}, ctx.environment.options)
    if fields.get("oauth") and secret.client_secret:
        fields["oauth"] = {**fields["oauth"], "client_secret": secret.client_secret}
    existing = await _find_same_connector(ctx, {**fields, **values})
    if existing is None:
        active = fields.get("active", True) and secret.password is not None
        await connector_mutations.create_connector(
            ctx, None, {**fields, "active": active}, secret.password
        )
        return secret.password is not None
    if _decrypt_secret_or_empty(ctx.environment, existing).get("password"):
        return True
    if secret.password is None or _secret_binding(_record_from_row(existing)) != _secret_binding(
        record
    ):
        return False
    changed_fields: dict[str, Any] = {
        name: fields[name] for name in ("active", "oauth") if name in fields
    }
    await connector_mutations.update_connectors(ctx, [existing.id], changed_fields, secret.password)
    return True


async def _find_same_connector(ctx: Context, values: ConnectorRecord) -> ColumnRow | None:
    """Return the viewer's connector with the same protocol, host, port and username, or None."""
    is_same = [col(getattr(Connector, name)) == values[name]
            for name in ("protocol", "host", "port", "username")]  # fmt: skip
    is_own = col(Connector.user_id) == require_user_id(ctx), col(Connector.is_one_time).is_(False)
    rows = await ctx.read(select(*select_columns(Connector)).where(*is_own, *is_same))
    return next(iter(rows), None)


def _validated_fields_of_record(record: ConnectorRecord) -> dict[str, Any]:
    """Return the columns of a connector in a file.

    Raises InvalidInput if a field is missing or wrong.
    """
    fields: dict[str, Any] = {}
    for name, (column, kind) in FILE_FIELDS.items():
        if (value := record.get(name)) is None:
            if name in REQUIRED_FIELDS:
                raise InvalidInput(
                    "The field is required.", constraint=ValidationConstraint.REQUIRED, path=[name]
                )
            continue
        is_number = kind in (int, timedelta)
        has_type = isinstance(value, int if is_number else kind)
        if not has_type or (is_number and (isinstance(value, bool) or not 0 <= value < MAX_NUMBER)):
            raise InvalidInput(
                "The value has the wrong type.", constraint=ValidationConstraint.TYPE, path=[name]
            )
        fields[column] = timedelta(seconds=value) if kind is timedelta else value
    fields["protocol"] = _enum_member_or_raise(ConnectorProtocol, fields["protocol"], "protocol")
    fields["security"] = _enum_member_or_raise(ConnectorSecurity, fields["security"], "security")
    if oauth := fields.get("oauth"):
        _require_text_fields(oauth, ("tokenUrl", "clientId"), ("scope",), "oauth")
        fields["oauth"] = {column: oauth.get(name) for name, column in OAUTH_FIELDS.items()}
    for item in fields.get("folder_rewrites", ()):
        _require_text_fields(item, ("pattern", "replacement"), (), "folderRewrites")
    for item in fields.get("custom_options", ()):
        _require_text_fields(item, ("name",), ("value",), "customOptions")
        _enum_member_or_raise(OptionName, item["name"], "customOptions")
    return fields


def _enum_member_or_raise(enum_class: type[StrEnum], value: str, field_name: str) -> StrEnum:
    try:
        return enum_class(value)
    except ValueError:
        text = f"Must be one of {', '.join(enum_class)}."
        raise InvalidInput(
            text,
            constraint=ValidationConstraint.UNKNOWN,
            path=[field_name],
            allowed_values=enum_class,
        ) from None


def _require_text_fields(
    value: Any, required: tuple[str, ...], optional: tuple[str, ...], field_name: str
) -> None:
    """Raise InvalidInput if this is no object, lacks a text, or has other fields."""
    is_valid = isinstance(value, dict) and set(value) <= {*required, *optional}
    if is_valid:
        is_valid = all(isinstance(value.get(name), str) for name in required)
        is_valid &= all(isinstance(value.get(name), str | None) for name in optional)
    if not is_valid:
        raise InvalidInput(
            "The value has the wrong type.", constraint=ValidationConstraint.TYPE, path=[field_name]
        )

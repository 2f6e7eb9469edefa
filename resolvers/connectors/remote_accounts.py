"""Accounts of one remote server whose mail is imported, each for a user here.

The accounts are in the input, or in a CSV or JSON Lines file with the fields `user`, `username` and
`password`. An administrator of the server signs in for all of them with one password.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import (
    ErrorCollector,
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    RequestError,
    raise_errors,
    require_found,
)
from models.files.blobs import Upload
from models.store.columns import ColumnRow, core_table
from models.users.list_formats import UserFileFormat
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.connectors import validation as connector_validation
from resolvers.context import Context
from resolvers.files import uploads
from resolvers.transfer import record_files
from resolvers.transfer.record_files import FieldParser, FileRecord
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import require_managed_users

SOURCE_PATH = ("source", "remoteAccounts")
FILE_PATH = (*SOURCE_PATH, "file")
ADMINISTRATOR_PATH = (*SOURCE_PATH, "administrator")
MAX_FILE_SIZE = 4 << 20  # bytes
MAX_SEPARATOR_LENGTH = 8  # characters
MAX_MESSAGE_LENGTH = 500  # characters: a message can quote the file
FIELD_PARSERS: Mapping[str, FieldParser] = {
    "user": record_files.parse_text,
    "username": record_files.parse_text,
    "password": record_files.parse_text,
}


@dataclass(frozen=True, slots=True)
class RemoteAccountOfUser:
    """An account on a remote server, and the user here who gets its messages."""

    user_id: int
    username: str
    password: str | None = field(repr=False)  # None: the administrator signs in
    path: Sequence[str]  # of the account in the input
    line: int | None = None  # of the file


@dataclass(frozen=True, slots=True)
class RemoteAdministrator:
    """A user of a remote server who can sign in to all accounts.

    The server expects the name of the account, the separator and the name of the administrator.
    """

    username: str
    password: str = field(repr=False)
    separator: str


@dataclass(frozen=True, slots=True)
class RemoteAccounts:
    """Accounts of one remote server: the columns of connectors to it, and who signs in.

    Either `upload_id` is given, or `accounts` are.
    """

    fields: Mapping[str, Any]
    accounts: Sequence[RemoteAccountOfUser] = ()
    upload_id: int | None = None
    file_format: UserFileFormat | None = None
    administrator: RemoteAdministrator | None = None


@dataclass(frozen=True, slots=True)
class AccountConnection:
    """The columns of the connector to one remote account, and the secret to sign in with."""

    values: Mapping[str, Any]
    plain_secret: Mapping[str, Any] = field(repr=False)


async def load_accounts(ctx: Context, request: RemoteAccounts) -> Sequence[RemoteAccountOfUser]:
    """Return the accounts of the input or of its file.

    Raises InvalidInput, LimitReached if the file has too many, and NotFound for an upload or a
    user that the viewer can't see.
    """
    if request.upload_id is not None:
        return await _load_accounts_of_file(ctx, request.upload_id, request.file_format)
    return request.accounts


async def require_managed_users_of_accounts(
    ctx: Context, accounts: Sequence[RemoteAccountOfUser]
) -> Sequence[ColumnRow]:
    """Load the users of accounts, by id.

    Raises InvalidInput if two accounts have the same user, and NotFound or Forbidden for a user
    that the viewer can't change.
    """
    seen_user_ids = set[int]()
    for account in accounts:
        if account.user_id in seen_user_ids:
            text = "Each user can have one account in an import."
            problem = InvalidInput(text, constraint=ValidationConstraint.UNIQUE, path=["user"])
            raise _error_of_account(problem, account)
        seen_user_ids.add(account.user_id)
    user_ids = [account.user_id for account in accounts]
    try:
        return await require_managed_users(ctx, user_ids, path="user")
    except (NotFound, Forbidden) as refusal:
        raise _error_of_account(refusal, accounts[refusal.index or 0]) from None


def validate_connections(
    ctx: Context, request: RemoteAccounts, accounts: Sequence[RemoteAccountOfUser]
) -> dict[int, AccountConnection]:
    """Return the validated connection to the account of each user, by user id.

    Raises InvalidInput with all problems of the accounts.
    """
    options, administrator = ctx.environment.options, request.administrator
    try:
        server_values = connector_validation.validate_connector_fields(
            {**request.fields, "username": "account"}, {}, options
        )
    except InvalidInput as problem:
        problem.path = [*SOURCE_PATH, *problem.path]
        raise
    if administrator is not None:
        _require_valid_administrator(administrator)
    connections, errors = dict[int, AccountConnection](), list[RequestError]()
    for account in accounts:
        problems, password, values = ErrorCollector(), "", dict[str, Any]()
        with problems.collecting():
            password = _require_one_password(account, administrator)
        with problems.collecting():
            if not account.username:
                connector_validation.validate_connector_fields(
                    {"username": "", "name": ""}, server_values, options
                )
            suffix = f"{administrator.separator}{administrator.username}" if administrator else ""
            values = connector_validation.validate_connector_fields(
                {"username": f"{account.username}{suffix}", "name": ""}, server_values, options
            )
        try:
            problems.raise_collected()
        except RequestError as refusal:
            errors += [_error_of_account(error, account) for error in refusal.all_errors]
        else:
            connections[account.user_id] = AccountConnection(
                {**server_values, **values}, {"password": password, "client": None}
            )
    raise_errors(errors)
    return connections


def _require_one_password(
    account: RemoteAccountOfUser, administrator: RemoteAdministrator | None
) -> str:
    """Return the password to sign in with. Raises InvalidInput if there are two, or none."""
    if administrator is None:
        return connector_validation.validate_secret(account.password or "", "password")
    if account.password is not None:
        text = "An account can't have a password if `administrator` is given."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["password"])
    return administrator.password


def _require_valid_administrator(administrator: RemoteAdministrator) -> None:
    """Raise InvalidInput unless the administrator has a name, a password and a separator."""
    problems = ErrorCollector()
    with problems.collecting():
        connector_validation.validate_secret(
            administrator.password, *ADMINISTRATOR_PATH, "password"
        )
    for name, text, max_length in (
        ("username", administrator.username, connector_validation.MAX_NAME_LENGTH),
        ("separator", administrator.separator, MAX_SEPARATOR_LENGTH),
    ):
        with problems.collecting():
            if not 0 < len(text) <= max_length or not text.isprintable():
                raise InvalidInput(
                    f"Must have from 1 to {max_length} printable characters.",
                    constraint=ValidationConstraint.LENGTH,
                    path=[*ADMINISTRATOR_PATH, name],
                )
    problems.raise_collected()


async def expire_accounts_file(ctx: Context, session: AsyncSession, upload_id: int) -> None:
    """Let the upload with the passwords expire now, so that the next clean-up deletes it.

    Raises NotFound if it was deleted or used meanwhile.
    """
    now = ctx.environment.now()
    is_usable = col(Upload.user_id) == ctx.viewer.user_id, col(Upload.expires_at) > now
    statement = update(core_table(Upload)).where(col(Upload.id) == upload_id, *is_usable)
    statement = statement.values(expires_at=now)
    if not (await (await session.connection()).execute(statement)).rowcount:
        raise NotFound(str(upload_id), path=FILE_PATH)


async def _load_accounts_of_file(
    ctx: Context, upload_id: int, file_format: UserFileFormat | None
) -> list[RemoteAccountOfUser]:
    """Read the accounts of an upload. Raises MultipleErrors with the lines that are wrong."""
    require_user_id(ctx)  # only a user has uploads
    upload: ColumnRow = require_found(
        await ctx.load(uploads.load_own_complete_uploads_by_id, upload_id),
        str(upload_id),
        path=FILE_PATH,
    )
    if upload.size > MAX_FILE_SIZE:
        text = f"The file must have at most {MAX_FILE_SIZE:,} bytes."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=FILE_PATH)
    content = await uploads.read_and_verify_upload(ctx, upload_id)
    limit = ctx.environment.options.bulk_max_items
    try:
        records, total = await asyncio.to_thread(_read_records, content, file_format, limit)
    except InvalidInput as problem:
        problem.path = list(FILE_PATH)
        raise
    require_account_count_within_limit(ctx, total, FILE_PATH)
    fields_by_line, errors = dict[int, dict[str, str]](), dict[int, list[RequestError]]()
    for record in records:
        try:
            fields_by_line[record.line] = _fields_of_record(record)
        except RequestError as refusal:
            errors[record.line] = refusal.all_errors
    users = await user_loaders.find_users_by_name(
        ctx, (fields["user"] for fields in fields_by_line.values())
    )
    accounts = list[RemoteAccountOfUser]()
    for line, fields in fields_by_line.items():
        user, password = users.get(fields["user"]), fields.get("password")
        if user is None:
            errors[line] = [NotFound(fields["user"], path=["user"], noun="User")]
        else:
            username = fields.get("username", "")
            accounts.append(RemoteAccountOfUser(user.id, username, password, FILE_PATH, line))
    _raise_errors_of_lines(errors)
    return accounts


def _raise_errors_of_lines(errors: Mapping[int, Sequence[RequestError]]) -> None:
    """Raise the errors in the order of the lines. Raises nothing if there is no error."""
    raise_errors(
        [
            _error_of_line(error, line)
            for line, line_errors in sorted(errors.items())
            for error in line_errors
        ]
    )


class _CountedRecords(NamedTuple):
    """The first records of a file, and the number of all its records."""

    records: list[FileRecord]
    total: int


def _read_records(
    content: bytes, file_format: UserFileFormat | None, limit: int
) -> _CountedRecords:
    """Return the first records of a file, at most `limit`, and count all. Raises InvalidInput."""
    file_format = file_format or record_files.detect_format(content)
    records = record_files.read_records_of_bytes(content, file_format, FIELD_PARSERS.keys())
    with closing(records):
        first_records = list(islice(records, limit))
        return _CountedRecords(first_records, len(first_records) + sum(1 for _ in records))


def _fields_of_record(record: FileRecord) -> dict[str, str]:
    """Return the fields of a record, with the name of a user. Raises InvalidInput."""
    if record.problem:
        raise record.problem
    problems = ErrorCollector()
    fields = record_files.parse_known_fields(record.fields, FIELD_PARSERS, problems)
    with problems.collecting():
        if not fields.get("user"):
            raise InvalidInput(
                "A user is required.", constraint=ValidationConstraint.REQUIRED, path=["user"]
            )
    problems.raise_collected()
    return fields


def require_account_count_within_limit(ctx: Context, count: int, path: Sequence[str]) -> None:
    """Raise InvalidInput if there is no account, and LimitReached if there are too many."""
    limit = ctx.environment.options.bulk_max_items
    if not count:
        raise InvalidInput(
            "At least one account is required.", constraint=ValidationConstraint.MIN, path=path
        )
    if count > limit:
        text = f"At most {limit:,} accounts can be imported at once."
        raise LimitReached(text, limit=limit, used=count, path=path)


def _error_of_account(error: RequestError, account: RemoteAccountOfUser) -> RequestError:
    """Return the error of one account with the path of the account, or with its line.

    An account has its username itself, and not in a field `server`.
    """
    if error.path[:1] == ["server"]:
        error = error.copy_with_path(error.path[1:])
    if account.line is not None:
        return _error_of_line(error, account.line)
    moved_error = error.copy_with_path([*account.path, *error.path])
    moved_error.index = None  # the path has the position of the account
    return moved_error


def _error_of_line(error: RequestError, line: int) -> RequestError:
    """Return the error with the path of the file, and line and field in the message."""
    moved_error = error.copy_with_path(FILE_PATH)
    moved_error.index = None
    place = f"Line {line}, {'.'.join(error.path)}" if error.path else f"Line {line}"
    text = f"{place}: {error.message}"
    moved_error.message = text[:MAX_MESSAGE_LENGTH]
    return moved_error

"""Create addresses from the records of a CSV or JSON Lines file.

Fields have the names of `NewAddressInput` in the schema. `user` is a username or an address of the
user. The limit is the column `limits.forwardsPerDay`. A file has no automatic replies.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from models.addresses.tables import AddressKind
from models.admin.tasks import TaskKind
from models.errors import ErrorCollector, NotFound, RequestError
from resolvers.addresses import bulk_create, bulk_insert
from resolvers.addresses.mutations import NewAddress, PreparedAddress
from resolvers.context import Context
from resolvers.transfer import record_files, record_tasks
from resolvers.transfer.record_files import FieldParser, FileRecord
from resolvers.transfer.record_tasks import BatchResult, RecordTaskKind
from resolvers.users import loaders as user_loaders
from resolvers.users.validation import schema_name

MUTATION = "addressesCreateFromFile"
LIMIT_FIELD = schema_name("forwards_per_day")


def _parse_time(value: Any) -> datetime:
    text = record_files.parse_text(value).strip()
    with suppress(ValueError, OverflowError):  # no time, or a year that has no UTC time
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return time.astimezone(UTC)
    raise ValueError("Must be a time with an offset such as 2031-01-01T00:00:00Z.")


COLUMN_PARSERS: Mapping[str, FieldParser] = {  # by column of an address
    "name": record_files.parse_text,
    "active": record_files.parse_flag,
    "send_as": record_files.parse_flag,
    "expires_at": _parse_time,
    "tags": record_files.parse_texts,
    "public_comment": record_files.parse_text,
    "private_comment": record_files.parse_text,
    "public_metadata": record_files.parse_json,
    "private_metadata": record_files.parse_json,
    "forwards_per_day": record_files.limit_parser(record_files.parse_number),
}
COLUMNS = {schema_name(column): column for column in COLUMN_PARSERS}  # by name in the file
FIELD_PARSERS: Mapping[str, FieldParser] = {
    **{name: COLUMN_PARSERS[column] for name, column in COLUMNS.items()},
    "address": record_files.parse_text,
    "kind": record_files.enum_parser(AddressKind),
    "user": record_files.parse_text,
    "forwardTo": record_files.parse_texts,
    "main": record_files.parse_flag,
    "allowWildcard": record_files.parse_flag,
}


@dataclass(slots=True)
class AddressBatch:
    """Some records of a file, validated and ready to be stored."""

    ctx: Context
    lines: dict[int, int]  # line numbers by index in the chunk
    prepared: dict[int, PreparedAddress]
    errors: dict[int, list[RequestError]]
    total: int | None = None

    @classmethod
    async def prepare(cls, ctx: Context, records: Sequence[FileRecord]) -> "AddressBatch":
        """Validate records. Stores nothing."""
        errors, new_addresses = dict[int, list[RequestError]](), dict[int, NewAddress]()
        problems, user_ids = dict[int, ErrorCollector](), dict[str, int]()
        for index, record in enumerate(records):
            if record.problem:
                errors[index] = [record.problem]
                continue
            problems[index] = ErrorCollector()
            try:
                new_addresses[index] = await _address_from_record(
                    ctx, record, problems[index], user_ids
                )
            except RequestError as refusal:
                errors[index] = refusal.all_errors
        prepared, more_errors = bulk_create.prepare_addresses(ctx, new_addresses, problems)
        lines = {index: record.line for index, record in enumerate(records)}
        return cls(ctx, lines, prepared, errors | more_errors)

    async def stream_ids(self) -> Collection[int]:
        """Return the ids of the streams to lock for the transaction of `store`."""
        return await bulk_create.stream_ids_to_lock(self.ctx, self.prepared.values())

    async def store(self) -> BatchResult:
        """Store the addresses that can be stored, in one transaction or savepoint."""
        async with self.ctx.write_session(*await self.stream_ids()):
            store_errors = await bulk_insert.insert_addresses_and_return_errors(
                self.ctx, self.prepared, mutation=MUTATION
            )
        return record_tasks.batch_result(self.ctx, self.lines, {**self.errors, **store_errors})


async def _address_from_record(
    ctx: Context, record: FileRecord, problems: ErrorCollector, user_ids: dict[str, int]
) -> NewAddress:
    """Return the new address of a record. Adds fields that can't be read to `problems`.

    `user_ids` has the ids of the users that were found, by the name in the file. Raises NotFound
    if the viewer can't see the user.
    """
    values = record_files.parse_known_fields(
        record.fields,
        FIELD_PARSERS,
        problems,
        nullable_fields=(LIMIT_FIELD,),
        max_metadata_size=ctx.environment.options.metadata_max_size,
    )
    name = values.get("user")
    if name and name not in user_ids:
        user = await user_loaders.find_user_by_name(ctx, name)
        if user is None:
            raise NotFound(name, path=["user"], noun="User")
        user_ids[name] = user.id
    return NewAddress(
        values.get("address", ""),
        values.get("kind"),
        user_ids[name] if name else None,
        main=values.get("main", False),
        wildcard=values.get("allowWildcard", False),
        forward_to=values.get("forwardTo", ()),
        columns={COLUMNS[name]: value for name, value in values.items() if name in COLUMNS},
    )


ADDRESSES_CREATE = RecordTaskKind(
    TaskKind.ADDRESSES_CREATE, MUTATION, FIELD_PARSERS.keys(), "addresses", AddressBatch.prepare
)

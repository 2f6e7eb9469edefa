"""Create filters of users from the records of a CSV or JSON Lines file.

Fields have the names of `NewFilterInput` in the schema. `user` is a username or an address of the
owner. In `action`, mailboxes are given by path, and `webhook` is not allowed.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.admin.tasks import TaskKind
from models.errors import ErrorCollector, InvalidInput, NotFound, RequestError
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.filters import bulk_create, file_queries, transfer
from resolvers.filters.bulk_create import NewFilter
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.transfer import record_files, record_tasks
from resolvers.transfer.record_files import FieldParser, FileRecord
from resolvers.transfer.record_tasks import BatchResult, RecordTaskKind
from resolvers.users import loaders as user_loaders

MUTATION = "filtersCreateFromFile"
REQUIRED_FIELDS = ("user", "query", "action")
PLAIN_FIELDS = ("name", "position", "active")  # have the names of their columns


def _parse_object(value: Any) -> dict[str, Any]:
    parsed_value = record_files.parse_json(value)
    if not isinstance(parsed_value, dict):
        raise TypeError("Must be a JSON object.")
    return parsed_value


FIELD_PARSERS: Mapping[str, FieldParser] = {
    "user": record_files.parse_text,
    "name": record_files.parse_text,
    "query": _parse_object,
    "action": _parse_object,
    "active": record_files.parse_flag,
    "position": record_files.parse_number,
    "metadata": _parse_object,
}


@dataclass(slots=True)
class FilterBatch:
    """Some records of a file, with their owners, ready to be stored."""

    ctx: Context
    lines: dict[int, int]  # line numbers by index in the chunk
    new_filters: dict[int, NewFilter]
    errors: dict[int, list[RequestError]]
    total: int | None = None

    @classmethod
    async def prepare(cls, ctx: Context, records: Sequence[FileRecord]) -> "FilterBatch":
        """Validate the types of records, and find the owners. Stores nothing."""
        errors, new_filters = dict[int, list[RequestError]](), dict[int, NewFilter]()
        user_ids = dict[str, int]()
        for index, record in enumerate(records):
            try:
                new_filters[index] = await _filter_from_record(ctx, record, user_ids)
            except RequestError as refusal:
                errors[index] = refusal.all_errors
        lines = {index: record.line for index, record in enumerate(records)}
        return cls(ctx, lines, new_filters, errors)

    async def stream_ids(self) -> Collection[int]:
        """Return the ids of the streams to lock for the transaction of `store`."""
        return bulk_create.owner_ids(self.ctx, self.new_filters.values())

    async def store(self) -> BatchResult:
        """Store the filters that can be stored, in one transaction or savepoint."""
        async with self.ctx.write_session(*await self.stream_ids()):
            created = await bulk_create.create_filters_and_return_errors(
                self.ctx, self.new_filters, mutation=MUTATION
            )
        return record_tasks.batch_result(self.ctx, self.lines, {**self.errors, **created.errors})


async def _filter_from_record(
    ctx: Context, record: FileRecord, user_ids: dict[str, int]
) -> NewFilter:
    """Return the new filter of a record.

    `user_ids` has the ids of the users that were found, by the name in the file. Raises
    InvalidInput with all problems, and NotFound if the viewer can't see the user.
    """
    if record.problem:
        raise record.problem
    problems = ErrorCollector()
    fields = record_files.parse_known_fields(
        record.fields,
        FIELD_PARSERS,
        problems,
        max_metadata_size=ctx.environment.options.metadata_max_size,
    )
    for name in REQUIRED_FIELDS:
        with problems.collecting():
            if fields.get(name, "") == "":
                raise InvalidInput(
                    "The field is required.", constraint=ValidationConstraint.REQUIRED, path=[name]
                )
    problems.raise_collected()
    name = fields.pop("user")
    action = _parse_action(fields["action"], problems)
    with problems.collecting():
        fields["query"] = file_queries.stored_query_from_file(fields["query"], ["query"])
    problems.raise_collected()
    if action.get("mailbox"):
        action["mailbox"] = MailboxSelector(path=action["mailbox"])
    if action.get("copyTo"):
        action["copyTo"] = [MailboxSelector(path=path) for path in action["copyTo"]]
    if name not in user_ids:
        user = await user_loaders.find_user_by_name(ctx, name)
        if user is None:
            raise NotFound(name, path=["user"], noun="User")
        user_ids[name] = user.id
    plain = {column: fields[column] for column in PLAIN_FIELDS if column in fields}
    metadata = {"public_metadata": fields["metadata"]} if "metadata" in fields else {}
    values = {**plain, **metadata, "query": fields["query"], "action": action}
    return NewFilter(user_ids[name], values)


def _parse_action(value: dict[str, Any], problems: ErrorCollector) -> dict[str, Any]:
    """Return a copy of the action. Adds an error to `problems` if a value has the wrong type."""
    with problems.collecting():
        transfer.require_action_types(value, ["action"])
    return dict(value)


FILTERS_CREATE = RecordTaskKind(
    TaskKind.FILTERS_CREATE, MUTATION, FIELD_PARSERS.keys(), "filters", FilterBatch.prepare
)

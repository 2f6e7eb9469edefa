"""Create users from the records of a CSV or JSON Lines file."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy.exc import IntegrityError

from models.admin.tasks import TaskKind
from models.errors import ErrorCollector, RequestError
from resolvers import list_errors
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.transfer import record_tasks
from resolvers.transfer.record_files import FileRecord
from resolvers.transfer.record_tasks import BatchResult, RecordTaskKind
from resolvers.users.creation import bulk_create, user_records
from resolvers.users.creation import insert as creation_insert
from resolvers.users.creation.create import NewUser
from resolvers.users.creation.insert import PreparedUser

MUTATION = "usersCreateFromFile"
MAX_TRIES = 2  # if a concurrent transaction took a name


@dataclass(slots=True)
class UserBatch:
    """Some records of a file, validated and with hashed passwords, ready to be stored."""

    ctx: Context
    lines: dict[int, int]  # line numbers by index in the chunk
    prepared: dict[int, PreparedUser]
    errors: dict[int, list[RequestError]]
    total: int | None = None

    @classmethod
    async def prepare(cls, ctx: Context, records: Sequence[FileRecord]) -> "UserBatch":
        """Validate records and hash their passwords. Stores nothing."""
        errors, new_users, problems = dict[int, list[RequestError]](), dict[int, NewUser](), {}
        for index, record in enumerate(records):
            if record.problem:
                errors[index] = [record.problem]
                continue
            problems[index] = ErrorCollector()
            try:
                new_users[index] = await _user_from_record(ctx, record, problems[index])
            except RequestError as refusal:
                errors[index] = refusal.all_errors
        checked_users, more_errors = await bulk_create.validate_new_users(ctx, new_users, problems)
        errors |= more_errors
        prepared = {nth: item.prepared for nth, item in checked_users.items()}
        for index, collision in (
            await creation_insert.find_collisions_and_limit_errors(ctx, prepared)
        ).items():
            errors[index] = collision.all_errors
            checked_users.pop(index)
        prepared = await password_hashes.retry_while_hash_workers_are_busy(
            partial(bulk_create.hash_passwords_and_build_welcomes, ctx, checked_users)
        )
        return cls(ctx, {nth: record.line for nth, record in enumerate(records)}, prepared, errors)

    async def stream_ids(self) -> Collection[int]:
        """Return the ids of the streams to lock for the transaction of `store`."""
        return await creation_insert.stream_ids_to_lock(self.ctx, self.prepared.values())

    async def store(self) -> BatchResult:
        """Store the users that can be stored, in one transaction or savepoint.

        Raises IntegrityError if names collide at each try.
        """
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                store_errors = await creation_insert.store_users_and_return_errors(
                    self.ctx, self.prepared, mutation=MUTATION, allow_partial=True
                )
                break
            except IntegrityError:  # a concurrent transaction took a name: the next try finds it
                if not tries_left:
                    raise
        errors = {**self.errors, **list_errors.error_lists(store_errors)}
        return record_tasks.batch_result(self.ctx, self.lines, errors)


async def _user_from_record(ctx: Context, record: FileRecord, problems: ErrorCollector) -> NewUser:
    """Return the new user of a record, with the ids of its domains. Raises NotFound."""
    new_user, domain_names = user_records.user_from_record(
        record, problems, ctx.environment.options.metadata_max_size
    )
    if domain_names:
        domain_refs = [DomainIdOrName(name=name) for name in domain_names]
        rows = await domain_loaders.require_administered_domains_by_ref(
            ctx, domain_refs, path="administers"
        )
        new_user = replace(new_user, administers=[row.id for row in rows])
    return new_user


USERS_CREATE = RecordTaskKind(
    TaskKind.USERS_CREATE, MUTATION, user_records.COLUMN_PARSERS.keys(), "users", UserBatch.prepare
)

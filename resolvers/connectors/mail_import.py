"""Queue one-time imports of an archive, or of an account here or on another server."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import func, insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes import paths
from mail.storage.blobs.blob_writer import upsert_blob_rows
from models.connectors import (
    AuthMechanism,
    Connector,
    ConnectorProtocol,
    ConnectorRun,
    ConnectorSecurity,
)
from models.errors import InvalidInput, LimitReached, NotFound
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, core_table
from models.transfer import ImportArchive
from models.users.roles import UserPermission
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.connectors import credentials, remote_accounts
from resolvers.connectors import validation as connector_validation
from resolvers.connectors.loaders import GUARD_FOR_OTHERS
from resolvers.connectors.mutations import wake_connector_workers_after_commit
from resolvers.connectors.one_time_imports import OneTimeImport
from resolvers.connectors.remote_accounts import (
    AccountConnection,
    RemoteAccountOfUser,
    RemoteAccounts,
)
from resolvers.connectors.schedule import new_queued_run
from resolvers.context import Context
from resolvers.files.stored_files import blob_rows_of_uncompressed_object
from resolvers.files.uploads import ReceivedFile
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.content_access import (
    require_readable_account,
    write_content_read_to_security_log,
)
from resolvers.messages.filters import filter_match
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.transfer import import_archives
from resolvers.users.selection import (
    VIEWER_ONLY,
    UserSelector,
    require_managed_user,
    require_selected_users,
)
from resolvers.viewer import GuardRule

MAX_UNFINISHED_IMPORTS = 10  # of one account
REMOTE_GUARD = GuardRule(user_permission=UserPermission.CONNECTORS)


@dataclass(frozen=True, slots=True)
class RemoteAccount:
    """An account on another server: the columns of a connector to it, and the password."""

    fields: Mapping[str, Any]
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewMailImport:
    """The source of an import and the accounts that it imports to. One source is given."""

    users: UserSelector = VIEWER_ONLY
    upload_id: int | None = None
    server_path: str | None = None
    remote_account: RemoteAccount | None = None
    remote_accounts: RemoteAccounts | None = None  # they name the users
    source_user_id: int | None = None
    parent_mailbox: MailboxSelector | None = None  # all mailboxes are created in this one
    where: MessageConditions | None = None
    subscribe: bool = False


@dataclass(frozen=True, slots=True)
class _ValidatedSource:
    """The columns that the connectors of an import have in common, their secret, and the upload."""

    connector_values: Mapping[str, Any]
    plain_secret: Mapping[str, Any] | None = None  # in plain text until it is inserted
    connections: Mapping[int, AccountConnection] = field(default_factory=dict)  # by user id
    upload: tuple[ReceivedFile, str] | None = None  # the bytes and the name of their object


@dataclass(frozen=True, slots=True)
class _ValidatedImport:
    """A validated import that is ready to be stored."""

    request: NewMailImport
    users: Sequence[ColumnRow]
    parent_paths: Mapping[int, str | None]  # by user id
    source: _ValidatedSource


async def queue_mail_imports_and_return_run_ids(ctx: Context, request: NewMailImport) -> list[int]:
    """Queue a run for each account and return the run ids, in the order of the account ids.

    Raises Forbidden, InvalidInput, NotFound, and LimitReached if an account has ten unfinished
    imports.
    """
    accounts = await _load_remote_accounts(ctx, request)
    users = (
        await remote_accounts.require_managed_users_of_accounts(ctx, accounts)
        if request.remote_accounts
        else await require_selected_users(ctx, request.users)
    )
    user_ids = [user.id for user in users]
    if set(user_ids) - {ctx.viewer.user_id}:
        ctx.viewer.require(GUARD_FOR_OTHERS)
    parent_paths = await _require_parent_paths_by_user(ctx, user_ids, request.parent_mailbox)
    source = await _validate_source(ctx, request, user_ids, accounts)
    if not users:
        return []
    validated = _ValidatedImport(request, users, parent_paths, source)
    read_user_ids = {request.source_user_id or 0} - {0, ctx.viewer.user_id}
    async with ctx.write_session(*user_ids, *read_user_ids) as session:
        await _require_below_import_limit(ctx, user_ids)
        runs = await _insert_connectors_and_return_run_ids(ctx, session, validated)
        await _move_upload_to_import_archives(ctx, session, validated, runs)
        if request.remote_accounts and request.remote_accounts.upload_id is not None:
            await remote_accounts.expire_accounts_file(
                ctx, session, request.remote_accounts.upload_id
            )
        other_users = [user for user in users if user.id != ctx.viewer.user_id]
        after = {"source": source.connector_values["protocol"], "path": request.server_path}
        await audit_log.insert_audit_log_entries(
            ctx,
            session,
            *(
                NewAuditLogEntry("mailImport", "User", user.id, user.domain_id, None, after)
                for user in other_users
            ),
        )
        await write_content_read_to_security_log(ctx, read_user_ids)
    wake_connector_workers_after_commit(ctx)
    return runs


async def _load_remote_accounts(
    ctx: Context, request: NewMailImport
) -> Sequence[RemoteAccountOfUser]:
    """Return the remote accounts of an import, which name its users; none for another source.

    Raises Forbidden, InvalidInput, LimitReached or NotFound.
    """
    if request.remote_accounts is None:
        return ()
    if request.users.is_given:
        text = "`users` can't be combined with `remoteAccounts`, which names the users."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["users"])
    ctx.viewer.require(REMOTE_GUARD)
    return await remote_accounts.load_accounts(ctx, request.remote_accounts)


async def _validate_source(
    ctx: Context,
    request: NewMailImport,
    user_ids: Sequence[int],
    accounts: Sequence[RemoteAccountOfUser],
) -> _ValidatedSource:
    """Return the source of an import.

    Raises Forbidden, InvalidInput or NotFound if it can't be used.
    """
    message_filter = None if request.where is None or request.where.is_empty else request.where
    if message_filter and request.source_user_id is None:
        filter_match.validate_for_unstored(message_filter)
    settings = OneTimeImport(
        request.server_path,
        request.source_user_id,
        filter_match.json_from_conditions(message_filter) if message_filter else None,
        subscribe=request.subscribe,
    )
    local_values = {
        "host": "",
        "port": 0,
        "security": ConnectorSecurity.NONE,
        "auth_mechanism": AuthMechanism.PLAIN,
        "username": "",
    }
    if request.remote_account is not None:
        ctx.viewer.require(REMOTE_GUARD)
        return _validate_remote_source(ctx, request.remote_account, settings)
    if request.remote_accounts is not None:
        connections = remote_accounts.validate_connections(ctx, request.remote_accounts, accounts)
        common_values = {
            "protocol": request.remote_accounts.fields["protocol"],
            "import_options": settings,
        }
        return _ValidatedSource(common_values, connections=connections)
    if request.source_user_id is not None:
        await _validate_source_account(ctx, request.source_user_id, user_ids, message_filter)
        values = {**local_values, "protocol": ConnectorProtocol.USER, "name": "account"}
        return _ValidatedSource({**values, "import_options": settings})
    values = {**local_values, "protocol": ConnectorProtocol.ARCHIVE, "name": "archive"}
    if request.server_path is not None:
        await import_archives.require_importable_server_file(
            ctx, request.server_path, ["source", "path"]
        )
        return _ValidatedSource({**values, "import_options": settings})
    upload_with_name = await import_archives.require_own_uploaded_archive(
        ctx, request.upload_id or 0, ["source", "upload"]
    )
    return _ValidatedSource({**values, "import_options": settings}, upload=upload_with_name)


def _validate_remote_source(
    ctx: Context, remote_account: RemoteAccount, settings: OneTimeImport
) -> _ValidatedSource:
    try:
        values = connector_validation.validate_connector_fields(
            remote_account.fields, {}, ctx.environment.options
        )
        password = connector_validation.validate_secret(remote_account.password)
        client = (remote_account.fields.get("oauth") or {}).get("client_secret")
        if client:
            client = connector_validation.validate_secret(client, "server", "oauth", "clientSecret")
    except InvalidInput as problem:
        path = ["source", "remote", *problem.path]
        raise InvalidInput(
            problem.message, constraint=problem.constraint, path=path, index=problem.index
        ) from None
    return _ValidatedSource(
        {**values, "import_options": settings}, {"password": password, "client": client or None}
    )


async def _validate_source_account(
    ctx: Context,
    source_user_id: int,
    user_ids: Sequence[int],
    message_filter: MessageConditions | None,
) -> None:
    """Raise Forbidden, NotFound or InvalidInput if the viewer may not import from this account."""
    path = ["source", "user"]
    if source_user_id in user_ids:
        raise InvalidInput(
            "Source and destination must be different accounts.",
            constraint=ValidationConstraint.SELF,
            path=path,
        )
    require_readable_account(ctx, source_user_id)
    await require_managed_user(ctx, source_user_id, path="source")
    if message_filter:
        await MessageSelector(conditions=message_filter).validated_with_filter_sql(
            ctx, [source_user_id]
        )  # fails now instead of in each run


async def _require_parent_paths_by_user(
    ctx: Context, user_ids: Sequence[int], parent_mailbox: MailboxSelector | None
) -> Mapping[int, str | None]:
    """Return the path of the mailbox of each account in which all others are created.

    Raises NotFound if an account has no such mailbox, and InvalidInput if the reference can't be
    used.
    """
    path = ["parentMailbox"]
    if parent_mailbox is None:
        return dict.fromkeys(user_ids)
    if parent_mailbox.path is not None:
        return dict.fromkeys(user_ids, paths.validate_path(parent_mailbox.path, input_path=path))
    if parent_mailbox.special_use is None and len(user_ids) > 1:
        text = "For several users, refer to the mailbox by path or special use."
        raise InvalidInput(text, constraint=ValidationConstraint.UNSUPPORTED, path=path)
    reference_column = (
        "special_use"
        if parent_mailbox.special_use is not None
        else "id"
        if parent_mailbox.id
        else "object_id"
    )
    statement = select(col(Mailbox.user_id), col(Mailbox.path)).where(
        col(Mailbox.user_id).in_(user_ids),
        col(getattr(Mailbox, reference_column)) == getattr(parent_mailbox, reference_column),
    )
    paths_by_user = {row.user_id: row.path for row in await ctx.read(statement)}
    if set(user_ids) - set(paths_by_user):
        raise NotFound(str(parent_mailbox), path=path)
    return paths_by_user


async def _require_below_import_limit(ctx: Context, user_ids: Sequence[int]) -> None:
    """Raise LimitReached if an account has too many unfinished imports."""
    count_column = func.count().label("many")
    conditions = (
        col(Connector.user_id).in_(user_ids),
        col(Connector.is_one_time),
        col(Connector.next_run_at).is_not(None),
    )
    statement = (
        select(col(Connector.user_id), count_column)
        .where(*conditions)
        .group_by(col(Connector.user_id))
    )
    used = max((row.many for row in await ctx.read(statement)), default=0)
    if used >= MAX_UNFINISHED_IMPORTS:
        text = f"An account has at most {MAX_UNFINISHED_IMPORTS} unfinished imports."
        raise LimitReached(text, limit=MAX_UNFINISHED_IMPORTS, used=used, path=["users"])


async def _insert_connectors_and_return_run_ids(
    ctx: Context, session: AsyncSession, validated: _ValidatedImport
) -> list[int]:
    """Insert a hidden connector and a queued run of it for each account; returns the run ids."""
    environment, now, source = ctx.environment, ctx.environment.now(), validated.source
    settings: OneTimeImport = source.connector_values["import_options"]
    connectors, runs = list[Connector](), list[ConnectorRun]()
    for user in validated.users:
        connector_id, run_id = environment.new_id(), environment.new_id()
        user_settings = {**asdict(settings), "below": validated.parent_paths[user.id]}
        connection = source.connections.get(user.id)
        plain_secret = connection.plain_secret if connection else source.plain_secret
        row: dict[str, Any] = {
            **source.connector_values,
            **(connection.values if connection else {}),
            "id": connector_id,
            "user_id": user.id,
            "secret": credentials.encrypt_secret(environment, connector_id, plain_secret)
            if plain_secret
            else "",
            "target_folder": validated.parent_paths[user.id],
            "subscribe_all": validated.request.subscribe,
            "interval": None,
            "import_options": user_settings,
            "is_one_time": True,
            "run_id": run_id,
            "next_run_at": now,
            "created_at": now,
        }
        connectors.append(Connector(**row))
        runs.append(new_queued_run(ctx, connector_id, user.id, run_id))
    for rows in (connectors, runs):
        session.add_all(rows)
        await session.flush()
    journal_entries = {
        connector.user_id: [(EventType.CONNECTOR_CREATED, [connector.id])]
        for connector in connectors
    }
    await ctx.record_changes(session, journal_entries)
    return [run.id for run in runs]


async def _move_upload_to_import_archives(
    ctx: Context, session: AsyncSession, validated: _ValidatedImport, run_ids: Sequence[int]
) -> None:
    """Keep an uploaded archive as long as a run needs it; its blob belongs to the first tenant."""
    if validated.source.upload is None:
        return
    received, name = validated.source.upload
    stored_blob = await blob_rows_of_uncompressed_object(
        ctx.environment, validated.users[0].tenant_id, received, name
    )

    def delete_upload_and_insert_archives(transaction: DatabaseTransaction) -> None:
        upload_id = validated.request.upload_id or 0
        import_archives.delete_upload_row(
            transaction, ctx.viewer.user_id, upload_id, ["source", "upload"]
        )
        blob_id = upsert_blob_rows(transaction, stored_blob)[stored_blob.layout_digest]
        rows = [
            {
                "id": transaction.environment.new_id(),
                "user_id": user.id,
                "task_id": run,
                "filename": received.filename or "archive",
                "size": received.size,
                "blob_id": blob_id,
                "created_at": transaction.environment.now(),
            }
            for user, run in zip(validated.users, run_ids, strict=True)
        ]
        transaction.connection.execute(insert(core_table(ImportArchive)), rows)

    await ctx.environment.run_in_session(session, delete_upload_and_insert_archives)

"""GraphQL types, queries and mutations of connectors and their runs."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types import global_ids
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, query, subscription
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, id_from_ref, ids_from_refs
from graph.types.object_views import DerivedField, NestedViewField, View
from graph.types.references import UserSelection, user_selector_from_selection
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import URL, BigInt, ByteSize, Duration
from mail.connectors.remote_server import ConnectorStage
from models.admin.tasks import TaskState
from models.connectors import AuthMechanism, ConnectorProtocol, ConnectorSecurity
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Scope, UserPermission
from resolvers.admin import progress
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors.loaders import ConnectorPageKey, ConnectorWhere, RunPageKey
from resolvers.connectors.options import OptionName
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

LIST_ORDERING = "connectors"
USER_LIST_ORDERING = "connectors-of"
RUN_ORDERING = "connector-runs-"
BY_ARGUMENT = strawberry.argument(description="Run to return.")
RUN_ARGUMENT = strawberry.argument(
    description="Run to follow. Default: all runs of the signed-in user."
)
WRITE_GUARD: dict[str, Any] = {
    "scope": Scope.SETTINGS,
    "user_permission": UserPermission.CONNECTORS,
}


def _duration_field(column: str) -> DerivedField:
    """Return a field that shows a column of seconds as a duration."""
    return DerivedField(
        (column,), lambda seconds: None if seconds is None else timedelta(seconds=seconds)
    )


@strawberry.type(description="Rule that renames mailboxes of the remote server.")
class FolderRewrite(View):
    pattern: str = attribute_field(
        "Regular expression that is searched for in the whole remote path, ignoring case. The "
        "first match is replaced."
    )
    replacement: str = attribute_field(
        "Replacement of the first match. `$1` to `$9` are the groups of the match."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "pattern": DerivedField((), lambda one: one["pattern"]),
        "replacement": DerivedField((), lambda one: one["replacement"]),
    }


@strawberry.type(description="Custom option of a connector.")
class ConnectorOption(View):
    name: OptionName = attribute_field("Name of the custom option.")
    value: str = attribute_field("Value of the option. Empty for an option without a value.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "name": DerivedField((), lambda one: OptionName(one["name"])),
        "value": DerivedField((), lambda one: one["value"]),
    }


@strawberry.type(
    description="OAuth 2.0 token endpoint that returns access tokens for the refresh token (RFC "
    "6749)."
)
class ConnectorOauth(View):
    token_url: URL = attribute_field("URL of the token endpoint.")
    client_id: str = attribute_field("Client ID of this server at the token endpoint.")
    scope: str | None = attribute_field(
        "Requested OAuth scope. Null: the scope of the refresh token."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        name: DerivedField((), lambda one, name=name: one[name])
        for name in ("token_url", "client_id", "scope")
    }


@strawberry.type(
    description="Connector to an account on a remote IMAP or POP3 server whose messages are "
    "fetched regularly.",
    directives=[Auth(scope=Scope.READ)],
)
class Connector(NodeView):
    name: str = attribute_field(
        "Name of the connector, by default username and host of the remote account."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User who gets the messages.",
    )
    protocol: ConnectorProtocol = attribute_field("Protocol of the remote server.")
    host: str = attribute_field("Host name or IP address of the remote server.")
    port: int = attribute_field("TCP port of the remote server.")
    security: ConnectorSecurity = attribute_field("Encryption of the connection.")
    auth_mechanism: AuthMechanism = attribute_field(
        "SASL mechanism for signing in on the remote server."
    )
    username: str = attribute_field("Username on the remote server.")
    oauth: ConnectorOauth | None = attribute_field(
        "Token endpoint for access tokens. Null: the password is used as it is."
    )
    target_domain: str | None = attribute_field(
        "Domain of the recipient address that filters see for fetched messages. Null: the domain "
        "of the user's main address."
    )
    target_folder: str | None = attribute_field(
        "Path of the local mailbox that contains all fetched mailboxes. Null: the remote hierarchy."
    )
    interval: Duration | None = attribute_field(
        "Time between two runs. Null: runs are only started by `connectorStart`."
    )
    max_age: Duration | None = attribute_field("Maximum age of fetched messages. Null: unlimited.")
    max_bytes_per_second: ByteSize | None = attribute_field(
        "Maximum transfer rate in bytes per second. Null: unlimited."
    )
    exclude: str | None = attribute_field(
        "Regular expression for paths of remote mailboxes that are not fetched. Null: none is "
        "excluded."
    )
    folder_rewrites: list[FolderRewrite] = attribute_field("Rules that rename remote mailboxes.")
    auto_map_folders: bool = attribute_field(
        "True if remote mailboxes are mapped to local ones by special use or usual name, such as "
        "Sent Items to Sent."
    )
    subscribe_all: bool = attribute_field("True if a run subscribes to mailboxes that it creates.")
    skip_cross_duplicates: bool = attribute_field(
        "True if a message that is in several remote mailboxes is fetched only once."
    )
    remove_duplicates: bool = attribute_field(
        "True if messages that the local mailbox already contains are skipped."
    )
    source_retention: Duration | None = attribute_field(
        "Time after which a fetched message is deleted on the remote server. PT0S: at once. Null: "
        "never."
    )
    mirror_deletes: bool = attribute_field(
        "True if local messages are deleted after they were deleted on the remote server."
    )
    remote_timeout: Duration = attribute_field(
        "Maximum time without a response of the remote server."
    )
    local_timeout: Duration = attribute_field("Maximum time of a database transaction of a run.")
    custom_options: list[ConnectorOption] = attribute_field("Custom options of the connector.")
    spam_check: bool = attribute_field("True if messages fetched into INBOX are scanned for spam.")
    virus_check: bool = attribute_field("True if fetched messages are scanned for viruses.")
    apply_filters: bool = attribute_field(
        "True if the filters of the user run on messages fetched into INBOX."
    )
    active: bool = attribute_field("True if the connector runs at its interval.")
    running: bool = attribute_field("True if a run is queued or in progress.")
    last_run_at: datetime | None = attribute_field(
        "Time when the last run started. Null: there was none."
    )
    last_success_at: datetime | None = attribute_field(
        "Time when the last successful run ended. Null: there was none."
    )
    last_error: str | None = attribute_field("Error of the last run. Null: it succeeded.")
    next_run_at: datetime | None = attribute_field("Time of the next run. Null: none is scheduled.")
    created_at: datetime = attribute_field("Time when the connector was created.")
    updated_at: datetime | None = attribute_field(
        "Time of the last change of the connector. Null: never changed."
    )

    load_batch = staticmethod(connector_loaders.load_visible_connectors_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Connector"),
        "interval": _duration_field("interval"),
        "max_age": _duration_field("max_age"),
        "source_retention": _duration_field("source_retention"),
        "remote_timeout": _duration_field("remote_timeout"),
        "local_timeout": _duration_field("local_timeout"),
        "running": DerivedField(("run_id",), lambda key: key is not None),
        "folder_rewrites": NestedViewField(
            ("folder_rewrites",), lambda some: some, FolderRewrite, is_list=True
        ),
        "custom_options": NestedViewField(
            ("custom_options",), lambda some: some, ConnectorOption, is_list=True
        ),
        "oauth": NestedViewField(("oauth",), lambda one: one, ConnectorOauth),
    }

    @field(
        "True if a message is deleted on the remote server at once after it was fetched.",
        "source_retention",
    )
    def delete_source(self) -> bool:
        return bool(self.row.source_retention == 0)

    @field("Log of the last run, one line for each entry. Null: there was no run.", cost=5)
    async def last_log(self, info: Info) -> str | None:
        lines = await info.context.load(connector_loaders.load_last_logs_by_connector, self.row.id)
        return None if lines is None else "\n".join(lines)

    @field("The last 100 runs of the connector, newest first.")
    async def runs(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection["ConnectorRun"]:
        requested_page = page_request(RUN_ORDERING, first, after, last, before)
        page_key = RunPageKey(self.row.id, requested_page, selected_columns(info, ConnectorRun))
        return await connection_of_page(
            info,
            ConnectorRun,
            await info.context.load(connector_loaders.load_run_pages_by_connector, page_key),
            lambda row: Cursor(RUN_ORDERING, row.connector_id, row.id),
            lambda: info.context.load(connector_loaders.count_runs_by_connector, page_key),
        )


@strawberry.type(
    description="Run of a connector or of a mail import.", directives=[Auth(scope=Scope.READ)]
)
class ConnectorRun(NodeView):
    connector: Connector | None = link(
        "connector_id",
        connector_loaders.load_visible_connectors_by_id,
        Connector.from_row_or_none,
        description="Connector of the run. Null: a mail import.",
    )
    state: TaskState = attribute_field("State of the run.")
    correlation_id: str = attribute_field("ID of the run in the logs of the server.")
    dry_run: bool = attribute_field("True if the run stores and deletes nothing.")
    started_at: datetime | None = attribute_field("Time when the run started. Null: it is queued.")
    finished_at: datetime | None = attribute_field(
        "Time when the run ended. Null: it has not ended."
    )
    stage: ConnectorStage | None = attribute_field(
        "Current stage, or the stage at which the run failed. Null: it has not started."
    )
    folder: str | None = attribute_field("Path of the mailbox that is being fetched. Null: none.")
    seen_count: BigInt = attribute_field("Number of messages in the remote mailboxes so far.")
    imported_count: BigInt = attribute_field(
        "Number of stored messages. In a dry run: of messages that would be stored."
    )
    skipped_count: BigInt = attribute_field(
        "Number of messages that were left out or already present."
    )
    deleted_remote_count: BigInt = attribute_field(
        "Number of messages deleted on the remote server."
    )
    size: ByteSize = attribute_field("Size of the fetched messages in bytes.")
    error: str | None = attribute_field("Error of the run. Null: there was none.")
    log: list[str] = attribute_field(
        "Lines of the log, at most 200. Lines in the middle of a longer log are left out."
    )

    load_batch = staticmethod(connector_loaders.load_visible_runs_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("ConnectorRun"),
        "correlation_id": DerivedField(("id",), lambda key: f"connector-run-{key}"),
    }


async def load_connector_page(
    info: Info, user_id: int, page_arguments: PageArguments
) -> Connection[Connector]:
    """Load a page of the connectors of an account."""
    requested_page = page_request(USER_LIST_ORDERING, *page_arguments)
    page_key = ConnectorPageKey(user_id, requested_page, selected_columns(info, Connector))
    return await connection_of_page(
        info,
        Connector,
        await info.context.load(connector_loaders.load_visible_connector_pages_by_user, page_key),
        lambda row: Cursor(USER_LIST_ORDERING, row.user_id, row.id),
        lambda: info.context.load(connector_loaders.count_visible_connectors_by_user, page_key),
    )


@strawberry.input(one_of=True, description="Reference to one connector.")
class ConnectorRef(ObjectRef):
    pass


@strawberry.input(
    one_of=True, description="Reference to one run of a connector or of a mail import."
)
class ConnectorRunRef(ObjectRef):
    pass


@strawberry.input(description="Conditions for connectors. All of them must hold.")
class ConnectorFilter(ConditionsInput):
    users: UserSelection | None = attribute_field("Connectors of these users.", default=UNSET)
    active: bool | None = attribute_field(
        "True selects active connectors, false inactive ones.", default=UNSET
    )
    failing: bool | None = attribute_field(
        "True selects connectors whose last run failed, false the others.", default=UNSET
    )


@strawberry.input(description="Input of connectorStart.")
class ConnectorStartInput(Options):
    connectors: list[ConnectorRef] = attribute_field("Connectors to start.")
    dry_run: bool = attribute_field("Runs without storing or deleting anything.", default=False)


@strawberry.input(description="Input of connectorRunCancel.")
class ConnectorRunCancelInput(Options):
    connector_runs: list[ConnectorRunRef] = attribute_field("Runs to cancel.")


@strawberry.input(description="Input of connectorDelete.")
class ConnectorDeleteInput(Options):
    connectors: list[ConnectorRef] = attribute_field("Connectors to delete.")


@strawberry.type(description="Payload of connectorUpdate.")
class ConnectorsPayload(MutationPayload):
    connectors: list[Connector] = attribute_field(
        "Connectors in the order of the references.", default_factory=list
    )


@strawberry.type(description="Payload of connectorStart and connectorRunCancel.")
class ConnectorRunsPayload(MutationPayload):
    connector_runs: list[ConnectorRun] = attribute_field(
        "Runs in the order of the references.", default_factory=list
    )


@strawberry.type
class ConnectorQuery:
    @query(
        "Returns connectors, sorted by user and creation. Administrators see connectors of their "
        "users, a DOMAIN_ADMIN only with the permission CONNECTORS.",
        scope=Scope.READ,
    )
    async def connectors(
        self,
        info: Info,
        filter: ConnectorFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Connector]:
        conditions = _conditions_from_filter(filter) if filter else ConnectorWhere()
        list_ordering = ordering_name(
            LIST_ORDERING, None if conditions == ConnectorWhere() else conditions
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Connector,
            await connector_loaders.read_connector_page(
                info.context, conditions, requested_page, selected_columns(info, Connector)
            ),
            lambda row: Cursor(requested_page.ordering, row.user_id, row.id),
            lambda: connector_loaders.count_connectors(info.context, conditions),
        )

    @query(
        "Returns a run of a connector or of a mail import. Null: the caller can't see it.",
        scope=Scope.READ,
    )
    async def connector_run(
        self, info: Info, by: Annotated[ConnectorRunRef, BY_ARGUMENT]
    ) -> ConnectorRun | None:
        row = await info.context.load(
            connector_loaders.load_visible_runs_by_id, id_from_ref(by, "by")
        )
        return ConnectorRun.from_row_or_none(row)


@strawberry.type
class ConnectorMutation:
    @mutation("Deletes connectors, all or none. Fetched messages stay.", **WRITE_GUARD)
    async def connector_delete(self, info: Info, input: ConnectorDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.connectors, "connectors")
        await connector_mutations.delete_connectors(info.context, keys)
        return DeletePayload(deleted_ids=[global_ids.encode("Connector", key) for key in keys])

    @mutation(
        "Starts a run of each connector, also of inactive ones. A run that is queued or in "
        "progress is returned instead.",
        **WRITE_GUARD,
    )
    async def connector_start(self, info: Info, input: ConnectorStartInput) -> ConnectorRunsPayload:
        keys = ids_from_refs(info, input.connectors, "connectors")
        run_ids = await connector_mutations.queue_or_find_runs(
            info.context, keys, is_dry_run=input.dry_run
        )
        return await load_run_payload(info, run_ids)

    @mutation(
        "Cancels runs at the next safe point. Fetched messages stay, and the next run continues "
        "after them. Finished runs are unchanged. Runs of connectors require the permission "
        "CONNECTORS.",
        scope=Scope.MAIL,
    )
    async def connector_run_cancel(
        self, info: Info, input: ConnectorRunCancelInput
    ) -> ConnectorRunsPayload:
        keys = ids_from_refs(info, input.connector_runs, "connectorRuns")
        await connector_mutations.cancel_runs(info.context, keys)
        return await load_run_payload(info, keys)


@strawberry.type
class ConnectorSubscription:
    @subscription(
        "Streams a run at once and after each change until it ends. Without a reference: streams "
        "all runs of the signed-in user.",
        scope=Scope.READ,
    )
    async def connector_run_progress(
        self,
        info: Info,
        connector_run: Annotated[ConnectorRunRef | None, RUN_ARGUMENT] = UNSET,
    ) -> AsyncIterator[ConnectorRun]:
        ctx = info.context
        key = id_from_ref(connector_run, "connectorRun") if connector_run else None
        rows = (
            progress.follow_connector_runs(ctx)
            if key is None
            else progress.follow_connector_run(ctx, key)
        )
        async for row in rows:
            yield ConnectorRun.from_row(row)


async def load_run_payload(info: Info, run_ids: list[int]) -> ConnectorRunsPayload:
    """Load connector runs and return the payload with them."""
    rows = await info.context.load_many(connector_loaders.load_visible_runs_by_id, run_ids)
    return ConnectorRunsPayload(connector_runs=[ConnectorRun.from_row(row) for row in rows if row])


async def load_connectors_payload(info: Info, connector_ids: list[int]) -> ConnectorsPayload:
    """Load connectors and return the payload with them."""
    rows = await info.context.load_many(
        connector_loaders.load_visible_connectors_by_id, connector_ids
    )
    return ConnectorsPayload(connectors=[Connector.from_row(row) for row in rows if row])


def _conditions_from_filter(connector_filter: ConnectorFilter) -> ConnectorWhere:
    """Convert the filter to conditions of the resolvers."""
    return ConnectorWhere(
        user_selector_from_selection(connector_filter.users, path="filter")
        if connector_filter.users
        else None,
        None if connector_filter.active is UNSET else connector_filter.active,
        None if connector_filter.failing is UNSET else connector_filter.failing,
    )

"""GraphQL types, queries and mutations of connectors and their runs."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import MutationPayload, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_access import MANAGED, OVERSEEN
from graph.types.object_references import ObjectRef, id_from_ref
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
from models.store.keyset_pages import ordering_name
from models.users.roles import AdminPermission, Scope, UserPermission
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors.loaders import ConnectorOrder, ConnectorRunOrder, ConnectorWhere
from resolvers.connectors.options import OptionName
from resolvers.list_orders import OwnerPageKey
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

RUN_ARGUMENT = strawberry.argument(
    description="Run to follow. Default: all runs of connectors and mail imports of the signed-in "
    "user."
)
WRITE_GUARD: dict[str, Any] = {
    "scope": Scope.SETTINGS,
    "user_permission": UserPermission.CONNECTORS,
    "access": MANAGED.with_permissions(AdminPermission.CONNECTORS).with_scope(Scope.FULL),
}


def _duration_field(column: str) -> DerivedField:
    """Return a field that shows a column of seconds as a duration."""
    return DerivedField(
        (column,), lambda seconds: None if seconds is None else timedelta(seconds=seconds)
    )


@strawberry.type(description="Rule that renames mailboxes of the remote server.")
class FolderRewrite(View):
    pattern: str = attribute_field(
        "Regular expression, at most 200 characters. It is searched for, ignoring case, in the "
        "path that the previous rules return. The first rule gets the remote path, with `/` "
        "between levels. The first match is replaced. Rules don't apply to mailboxes that "
        "`autoMapFolders` maps."
    )
    replacement: str = attribute_field(
        "Replacement of the first match, at most 255 characters. `$1` to `$9` are the groups of "
        "the match, `$$` is a dollar sign."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "pattern": DerivedField((), lambda one: one["pattern"]),
        "replacement": DerivedField((), lambda one: one["replacement"]),
    }


@strawberry.type(description="Custom option of a connector.")
class ConnectorOption(View):
    name: OptionName = attribute_field("Name of the custom option.")
    value: str = attribute_field(
        "Value of the option. An empty value turns an option on that is on or off."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "name": DerivedField((), lambda one: OptionName(one["name"])),
        "value": DerivedField((), lambda one: one["value"]),
    }


@strawberry.type(
    description="OAuth 2.0 token endpoint that returns access tokens for the refresh token (RFC "
    "6749). The client secret is never returned."
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
    "fetched regularly. The password is never returned.",
    directives=[Auth(scope=Scope.READ)],
)
class Connector(NodeView):
    name: str = attribute_field(
        "Name of the connector, by default `username@host` of the remote account."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User whose mailboxes get the messages.",
    )
    protocol: ConnectorProtocol = attribute_field(
        "Protocol by which messages are fetched from the remote server."
    )
    host: str = attribute_field("Host name or IP address of the remote server.")
    port: int = attribute_field("TCP port of the remote server.")
    security: ConnectorSecurity = attribute_field(
        "Encryption of the connection to the remote server."
    )
    auth_mechanism: AuthMechanism = attribute_field(
        "SASL mechanism for signing in on the remote server."
    )
    username: str = attribute_field("Username on the remote server.")
    oauth: ConnectorOauth | None = attribute_field(
        "Token endpoint for access tokens. Null: the password is used as it is."
    )
    target_domain: str | None = attribute_field(
        "Domain of the recipient address that the spam filter sees for messages fetched into "
        "INBOX. With `applyFilters`, the filters see it too. Null: the domain of the user's main "
        "address."
    )
    target_folder: str | None = attribute_field(
        "Path of the local mailbox that contains all fetched mailboxes, with `/` between levels. "
        "Null or INBOX: each mailbox keeps its remote path, unless `autoMapFolders` or "
        "`folderRewrites` changes it."
    )
    interval: Duration | None = attribute_field(
        "Time from the end of a run to the next one. After the second failed run in a row the "
        "interval is doubled. After the third it is 4 times as long, then always 6 times. Null: "
        "runs are only started by `connectorStart`."
    )
    max_age: Duration | None = attribute_field(
        "Maximum age of fetched messages, counted from their arrival on the remote server. Older "
        "ones are not fetched. No effect with POP3. Null: unlimited."
    )
    max_bytes_per_second: ByteSize | None = attribute_field(
        "Maximum rate at which a run receives data, in bytes per second. Null: unlimited."
    )
    exclude: str | None = attribute_field(
        "Regular expression, at most 200 characters. A remote mailbox is not fetched if its path "
        "contains a match, ignoring case. Null: none is excluded. Default of a new connector or "
        "mail import: paths that contain `spam` or `junk`."
    )
    folder_rewrites: list[FolderRewrite] = attribute_field(
        "Rules that rename remote mailboxes, applied in their order. At most 50."
    )
    auto_map_folders: bool = attribute_field(
        "True if remote mailboxes are mapped to local ones by special use. Mailboxes at the top "
        "level, or directly below INBOX, are also mapped by their usual name, such as Sent Items "
        "to Sent. No effect with a `targetFolder` other than INBOX."
    )
    subscribe_all: bool = attribute_field(
        "True if the user is subscribed to mailboxes that a run creates."
    )
    skip_cross_duplicates: bool = attribute_field(
        "True if a message that is in several remote mailboxes is stored only once, from the "
        "mailbox that is fetched first. Messages are equal if all their bytes are."
    )
    remove_duplicates: bool = attribute_field(
        "True if messages are skipped that the local mailbox already contains, byte for byte. "
        "Messages that an earlier run fetched from the same remote mailbox are skipped too."
    )
    source_retention: Duration | None = attribute_field(
        "Time from the fetch of a message to its deletion on the remote server. The first run "
        "after that time deletes it. PT0S: the run that fetches the message deletes it. A message "
        "fetched by the option IDLE is deleted by the next run. Messages that a scanner or the "
        "Sieve script refused are kept there. Null: messages are not deleted there."
    )
    mirror_deletes: bool = attribute_field(
        "True if a run deletes local messages that it has fetched and that were deleted on the "
        "remote server. They can be restored until their retention ends."
    )
    remote_timeout: Duration = attribute_field(
        "Maximum time without a response of the remote server. A run that exceeds it fails."
    )
    local_timeout: Duration = attribute_field(
        "Maximum time for one database transaction of a run. A run that exceeds it fails."
    )
    custom_options: list[ConnectorOption] = attribute_field(
        "Further options of the connector, such as patterns of mailboxes to fetch. At most 50."
    )
    spam_check: bool = attribute_field(
        "True if messages fetched into the local INBOX are scanned for spam, and the sender rules "
        "of the user apply to them. Messages fetched into other mailboxes, such as those below "
        "`targetFolder`, are not scanned."
    )
    virus_check: bool = attribute_field(
        "True if messages fetched into the local INBOX are scanned for viruses, if the server has "
        "a virus scanner. Messages of other mailboxes are not scanned."
    )
    apply_filters: bool = attribute_field(
        "True if the filters and the active Sieve script of the user run on messages fetched into "
        "the local INBOX."
    )
    active: bool = attribute_field(
        "True if the connector runs at its interval. False, or without an interval: only "
        "`connectorStart` runs it. While the user is inactive, no run starts."
    )
    running: bool = attribute_field("True if a run is queued or in progress.")
    last_run_at: datetime | None = attribute_field(
        "Time when the last run started, or was continued after an interruption. Null: there was "
        "none."
    )
    last_success_at: datetime | None = attribute_field(
        "Time when the last successful run ended. Null: there was none."
    )
    last_error: str | None = attribute_field(
        "Error of the latest run that has ended. Runs that were cancelled before they started do "
        "not count. Null: it did not fail, or no run has ended. connectorUpdate clears it only if "
        "it changes the user."
    )
    next_run_at: datetime | None = attribute_field(
        "Time when the next run is due. While a run is queued or in progress: time when that run "
        "was due. Null: none is due, since the connector is inactive or has no interval."
    )
    created_at: datetime = attribute_field("Time when the connector was created.")
    updated_at: datetime | None = attribute_field(
        "Time of the last connectorUpdate of the connector. Runs do not change it. Null: never "
        "changed."
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
        "oauth": NestedViewField(("oauth",), lambda item: item, ConnectorOauth),
    }

    @field(
        "True if the run that fetches a message also deletes it on the remote server "
        "(`sourceRetention` is PT0S).",
        "source_retention",
    )
    def delete_source(self) -> bool:
        return bool(self.row.source_retention == 0)

    @field(
        "Log of the newest run, also of one in progress: at most 200 lines, each with its time in "
        "UTC (HH:MM:SS). Empty: the run has not started. Null: there was no run.",
        cost=5,
    )
    async def last_log(self, info: Info) -> str | None:
        lines = await info.context.load(connector_loaders.load_last_logs_by_connector, self.row.id)
        return None if lines is None else "\n".join(lines)

    @field("The last 100 runs of the connector, including a queued one and one in progress.")
    async def runs(
        self,
        info: Info,
        order_by: ConnectorRunOrder = ConnectorRunOrder.CREATED_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection["ConnectorRun"]:
        list_order = connector_loaders.RUN_ORDERS[order_by]
        requested_page = page_request(f"connector-runs-{order_by}", first, after, last, before)
        page_key = OwnerPageKey(
            self.row.id, requested_page, list_order, selected_columns(info, ConnectorRun)
        )
        return await connection_of_page(
            info,
            ConnectorRun,
            await info.context.load(connector_loaders.load_run_pages_by_connector, page_key),
            lambda row: list_order.cursor_of_row(row, requested_page.ordering),
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
        description="Connector of the run. Null: the run is a mail import.",
    )
    state: TaskState = attribute_field("State of the run: queued, running, or how it ended.")
    correlation_id: str = attribute_field(
        "Name of the run: `connector-run-` and the number that the server's log shows as `run`."
    )
    dry_run: bool = attribute_field(
        "True if the run was started with `dryRun`, so that it stores and deletes nothing. The "
        "option DRY_RUN of the connector does not change this value."
    )
    started_at: datetime | None = attribute_field(
        "Time when the run started. Null: it has not started."
    )
    finished_at: datetime | None = attribute_field(
        "Time when the run ended. Null: it has not ended."
    )
    stage: ConnectorStage | None = attribute_field(
        "Last recorded stage of a run in progress, or the stage at which the run failed. Null: "
        "none was recorded yet, or the run ended without a failed stage."
    )
    folder: str | None = attribute_field(
        "Path, in the source, of the mailbox that is being fetched: on the remote server, in the "
        "archive or of the other user. Null: none is being fetched."
    )
    seen_count: BigInt = attribute_field(
        "Number of messages of the source that the run has looked at so far, including those that "
        "earlier runs fetched."
    )
    imported_count: BigInt = attribute_field(
        "Number of messages that the run has stored, without skipped duplicates. In a dry run, "
        "also by the connector option DRY_RUN: number of messages that it would fetch, including "
        "duplicates."
    )
    skipped_count: BigInt = attribute_field(
        "Number of messages that were not stored: excluded by age, size or filter, duplicates, or "
        "refused by a check. Messages that earlier runs fetched do not count. Those that age or "
        "size excludes count in each run."
    )
    deleted_remote_count: BigInt = attribute_field(
        "Number of messages that the run has deleted on the remote server."
    )
    size: ByteSize = attribute_field(
        "Size in bytes of the messages that the run has read from the source, including skipped "
        "duplicates. 0 in a dry run."
    )
    error: str | None = attribute_field("Error that ended the run. Null: it has not failed.")
    log: list[str] = attribute_field(
        "Lines of the run's log, each with its time in UTC (HH:MM:SS). At most 200 lines: of a "
        "longer log, the first 100 and the last 100."
    )

    load_batch = staticmethod(connector_loaders.load_visible_runs_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("ConnectorRun"),
        "correlation_id": DerivedField(("id",), lambda key: f"connector-run-{key}"),
    }


async def load_connector_page(
    info: Info, user_id: int, order_by: ConnectorOrder, page_arguments: PageArguments
) -> Connection[Connector]:
    """Load a page of the connectors of an account."""
    list_order = connector_loaders.LIST_ORDERS[order_by]
    requested_page = page_request(f"user-connectors-{order_by}", *page_arguments)
    page_key = OwnerPageKey(user_id, requested_page, list_order, selected_columns(info, Connector))
    return await connection_of_page(
        info,
        Connector,
        await info.context.load(connector_loaders.load_visible_connector_pages_by_user, page_key),
        lambda row: list_order.cursor_of_row(row, requested_page.ordering),
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


@strawberry.input(description="Conditions on connectors. All must hold.")
class ConnectorFilter(ConditionsInput):
    users: UserSelection | None = attribute_field(
        "Returns only connectors of these users. Default: all that the caller can see.",
        default=UNSET,
    )
    active: bool | None = attribute_field(
        "True returns only active connectors, false only the others.", default=UNSET
    )
    failing: bool | None = attribute_field(
        "True returns only connectors whose last run failed and that connectorUpdate has not "
        "changed since. False returns only the others, including those that have not run. "
        "Default: both.",
        default=UNSET,
    )


@strawberry.type(description="Payload of connectorUpdate.")
class ConnectorsPayload(MutationPayload):
    connectors: list[Connector] = attribute_field(
        "Changed connectors in the order of the references. Empty if the mutation failed.",
        default_factory=list,
    )


@strawberry.type
class ConnectorQuery:
    @query(
        "Returns connectors: those of the signed-in user, and for an administrator also those of "
        "other users. Inactive connectors are contained, one-time imports are not.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.CONNECTORS),
    )
    async def connectors(
        self,
        info: Info,
        filter: ConnectorFilter | None = UNSET,
        order_by: ConnectorOrder = ConnectorOrder.USER_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Connector]:
        conditions = _conditions_from_filter(filter) if filter else ConnectorWhere()
        list_ordering = ordering_name(
            f"connectors-{order_by}", None if conditions == ConnectorWhere() else conditions
        )
        list_order = connector_loaders.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Connector,
            await connector_loaders.read_visible_connector_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, Connector),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: connector_loaders.count_visible_connectors(info.context, conditions),
        )

    @query(
        "Returns a run of a connector or of a mail import by ID. Null if it does not exist, is no "
        "longer stored, or the caller can't see it. The last 100 runs of a connector are stored, "
        "and a mail import for 30 days after its end.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.CONNECTORS),
    )
    async def connector_run(self, info: Info, by: ConnectorRunRef) -> ConnectorRun | None:
        row = await info.context.load(
            connector_loaders.load_visible_runs_by_id, id_from_ref(by, "by")
        )
        return ConnectorRun.from_row_or_none(row)


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

"""GraphQL types, queries and mutations of connectors and their runs."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types import global_ids
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, attribute_field
from graph.types.fields import Auth, Info, field, query, subscription
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField, NestedViewField, View
from graph.types.references import UserSelection, ids_from_global_ids, user_selector_from_selection
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
from models.connectors import ConnectorProtocol, ConnectorSecurity
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
WRITE_GUARD: dict[str, Any] = {
    "scope": Scope.SETTINGS,
    "user_permission": UserPermission.CONNECTORS,
}


def _duration_field(column: str) -> DerivedField:
    """Return a field that shows a column of seconds as a duration."""
    return DerivedField(
        (column,), lambda seconds: None if seconds is None else timedelta(seconds=seconds)
    )


@strawberry.type(description="A folder is called otherwise here.")
class FolderRewrite(View):
    pattern: str = attribute_field("An expression, searched for in the whole path.")
    replacement: str = attribute_field("What stands there instead; $1 to $9 are its groups.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "pattern": DerivedField((), lambda one: one["pattern"]),
        "replacement": DerivedField((), lambda one: one["replacement"]),
    }


@strawberry.type(description="What is rarely needed.")
class ConnectorOption(View):
    name: OptionName = attribute_field("Which.")
    value: str = attribute_field("What it is set to; empty where being there says all.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "name": DerivedField((), lambda one: OptionName(one["name"])),
        "value": DerivedField((), lambda one: one["value"]),
    }


@strawberry.type(description="Where access tokens are asked for with a refresh token.")
class ConnectorOauth(View):
    token_url: URL = attribute_field("Where to.")
    client_id: str = attribute_field("Of us.")
    scope: str | None = attribute_field("What tokens are for; null = as the refresh token is.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        name: DerivedField((), lambda one, name=name: one[name])
        for name in ("token_url", "client_id", "scope")
    }


@strawberry.type(
    description="An account elsewhere whose mail comes here.",
    directives=[Auth(scope=Scope.READ)],
)
class Connector(NodeView):
    name: str = attribute_field("Name; by default the account.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Who gets the mail.",
    )
    protocol: ConnectorProtocol = attribute_field("What the server speaks.")
    host: str = attribute_field("Its name or address.")
    port: int = attribute_field("Its port.")
    security: ConnectorSecurity = attribute_field("How the connection is encrypted.")
    auth_mechanism: str = attribute_field("PLAIN, LOGIN, CRAM-MD5, XOAUTH2 or OAUTHBEARER.")
    username: str = attribute_field("Name of the account there.")
    oauth: ConnectorOauth | None = attribute_field(
        "Where tokens come from; null = the password is one."
    )
    target_domain: str | None = attribute_field(
        "Domain that recipients are rewritten to; null = none."
    )
    target_folder: str | None = attribute_field(
        "All folders are made in this one; null = as they are there."
    )
    interval: Duration | None = attribute_field("Time between two runs; null = only when asked to.")
    max_age: Duration | None = attribute_field("What is older stays there; null = all comes.")
    max_bytes_per_second: ByteSize = attribute_field("0 = as fast as it can.")
    exclude: str | None = attribute_field(
        "Folders that are not fetched, an expression; null = none."
    )
    folder_rewrites: list[FolderRewrite] = attribute_field(
        "Folders that are called otherwise here."
    )
    auto_map_folders: bool = attribute_field("Sent Items go to Sent, and so on.")
    subscribe_all: bool = attribute_field("Folders that are made are subscribed to.")
    skip_cross_duplicates: bool = attribute_field(
        "Of a message in two folders only the first comes."
    )
    remove_duplicates: bool = attribute_field(
        "What the folder here has already does not come again."
    )
    source_retention: Duration | None = attribute_field(
        "How long after it came a message is deleted there; null = never, PT0S = at once."
    )
    mirror_deletes: bool = attribute_field("What is deleted there is deleted here.")
    remote_timeout: Duration = attribute_field("The longest silence of the server.")
    local_timeout: Duration = attribute_field("The longest wait for our own store.")
    custom_options: list[ConnectorOption] = attribute_field("What is rarely needed.")
    spam_check: bool = attribute_field("What comes into INBOX goes through the spam filter.")
    virus_check: bool = attribute_field("And through the virus filter.")
    apply_filters: bool = attribute_field("And through the filters of the user.")
    active: bool = attribute_field("In force.")
    running: bool = attribute_field("Now.")
    last_run_at: datetime | None = attribute_field("Begin of the last run.")
    last_success_at: datetime | None = attribute_field("End of the last run without an error.")
    last_error: str | None = attribute_field("What went wrong in the last run; null when fine.")
    next_run_at: datetime | None = attribute_field("Begin of the next run.")
    created_at: datetime = attribute_field("Creation.")
    updated_at: datetime | None = attribute_field("Last change.")

    load_batch = staticmethod(connector_loaders.load_visible_connectors_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Connector"),
        "auth_mechanism": DerivedField(("mechanism",), lambda name: name),
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

    @field("Same as sourceRetention PT0S.", "source_retention")
    def delete_source(self) -> bool:
        return bool(self.row.source_retention == 0)

    @field("Text of the last run.", cost=5)
    async def last_log(self, info: Info) -> str | None:
        lines = await info.context.load(connector_loaders.load_last_logs_by_connector, self.row.id)
        return None if lines is None else "\n".join(lines)

    @field("The last hundred runs, newest first.")
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


@strawberry.type(description="One execution of a connector.", directives=[Auth(scope=Scope.READ)])
class ConnectorRun(NodeView):
    connector: Connector | None = link(
        "connector_id",
        connector_loaders.load_visible_connectors_by_id,
        Connector.from_row_or_none,
        description="Of which; null for a single import.",
    )
    state: TaskState = attribute_field("Where it stands.")
    unit: str = attribute_field("Its name in the logs of the server.")
    trial: bool = attribute_field("Nothing is stored, and nothing is deleted.")
    started_at: datetime | None = attribute_field("Begun.")
    finished_at: datetime | None = attribute_field("Ended.")
    stage: ConnectorStage | None = attribute_field("Where it is, or where it failed.")
    folder: str | None = attribute_field("Folder being worked on.")
    seen: BigInt = attribute_field("Messages there are in the folders so far.")
    imported: BigInt = attribute_field("Messages stored; of a trial, that would be.")
    skipped: BigInt = attribute_field("Messages left out, or known already.")
    deleted_remote: BigInt = attribute_field("Deleted at the source.")
    bytes: ByteSize = attribute_field("Fetched.")
    error: str | None = attribute_field("What went wrong.")
    log: list[str] = attribute_field(
        "What happened, line by line; of too many the middle is left out."
    )

    load_batch = staticmethod(connector_loaders.load_visible_runs_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("ConnectorRun"),
        "unit": DerivedField(("id",), lambda key: f"connector-run-{key}"),
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


@strawberry.input(description="Which connectors.")
class ConnectorFilter(ConditionsInput):
    users: UserSelection | None = attribute_field("Of these.", default=UNSET)
    active: bool | None = attribute_field("In force, or not.", default=UNSET)
    failing: bool | None = attribute_field("Whose last run failed, or not.", default=UNSET)


@strawberry.input(description="Input of connectorRun.")
class ConnectorRunInput(IdsInput):
    trial: bool = attribute_field("Store nothing and delete nothing: only look.", default=False)


@strawberry.type(description="Connectors, as they are now.")
class ConnectorsPayload(MutationPayload):
    connectors: list[Connector] = attribute_field("In the order of the ids.", default_factory=list)


@strawberry.type(description="Runs, as they are now.")
class ConnectorRunPayload(MutationPayload):
    runs: list[ConnectorRun] = attribute_field("In the order of the ids.", default_factory=list)


@strawberry.type
class ConnectorQuery:
    @query(
        "Connectors of the viewer, account by account; for administrators those of their users, "
        "for a DOMAIN_ADMIN with CONNECTORS.",
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

    @query("One run of a connector, or of a single import.", scope=Scope.READ)
    async def connector_run(self, info: Info, id: strawberry.ID) -> ConnectorRun | None:
        row = await info.context.load(
            connector_loaders.load_visible_runs_by_id, global_ids.decode("ConnectorRun", id)
        )
        return ConnectorRun.from_row_or_none(row)


@strawberry.type
class ConnectorMutation:
    @mutation("Removes connectors, all or none; mail that they have fetched stays.", **WRITE_GUARD)
    async def connector_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await connector_mutations.delete_connectors(
            info.context, ids_from_global_ids(info, "Connector", input.ids)
        )
        return DeletePayload(deleted_ids=input.ids)

    @mutation(
        "Has connectors run now, also those that are switched off; of one that runs already it is "
        "the run that is under way.",
        **WRITE_GUARD,
    )
    async def connector_run(self, info: Info, input: ConnectorRunInput) -> ConnectorRunPayload:
        keys = ids_from_global_ids(info, "Connector", input.ids)
        return await load_run_payload(
            info,
            await connector_mutations.queue_or_find_runs(info.context, keys, is_trial=input.trial),
        )

    @mutation(
        "Ends runs at the next safe point: what has come stays, and the next run goes on from "
        "there. Runs that have ended stay as they are. Those of connectors need CONNECTORS.",
        scope=Scope.MAIL,
    )
    async def connector_run_cancel(self, info: Info, input: IdsInput) -> ConnectorRunPayload:
        keys = ids_from_global_ids(info, "ConnectorRun", input.ids)
        await connector_mutations.cancel_runs(info.context, keys)
        return await load_run_payload(info, keys)


@strawberry.type
class ConnectorSubscription:
    @subscription(
        "A run now, and how far it has come, until its end; without an id all runs of the viewer's "
        "own connectors that move on.",
        scope=Scope.READ,
    )
    async def connector_run(
        self, info: Info, id: strawberry.ID | None = UNSET
    ) -> AsyncIterator[ConnectorRun]:
        ctx, key = info.context, global_ids.decode("ConnectorRun", id) if id else None
        rows = (
            progress.follow_connector_runs(ctx)
            if key is None
            else progress.follow_connector_run(ctx, key)
        )
        async for row in rows:
            yield ConnectorRun.from_row(row)


async def load_run_payload(info: Info, run_ids: list[int]) -> ConnectorRunPayload:
    """Load connector runs and return the payload with them."""
    rows = await info.context.load_many(connector_loaders.load_visible_runs_by_id, run_ids)
    return ConnectorRunPayload(runs=[ConnectorRun.from_row(row) for row in rows if row])


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

"""GraphQL types, queries and mutations of connectors and their runs."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, leaf
from graph.types.fields import Auth, Info, field, query, subscription
from graph.types.input_conditions import Conditions
from graph.types.mutations import mutation
from graph.types.object_views import Made, View, Viewed
from graph.types.references import UserSelection, keys_of, users_named
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.types.scalars import URL, BigInt, ByteSize, Duration
from mail.connectors.remote_server import Stage
from models.admin.tasks import TaskState
from models.connectors import Protocol, Security
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Scope, UserPermission
from resolvers.admin import progress
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors.loaders import ConnectorWhere, OfConnector, OfUser
from resolvers.connectors.options import OptionName
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

ORDER = "connectors"
OF_USER = "connectors-of"
RUNS = "connector-runs-"
WRITES: dict[str, Any] = {"scope": Scope.SETTINGS, "user_permission": UserPermission.SYNCJOBS}


def _lasting(column: str) -> Made:
    """Return a field that shows a column of seconds as a duration."""
    return Made((column,), lambda many: None if many is None else timedelta(seconds=many))


@strawberry.type(description="A folder is called otherwise here.")
class FolderRewrite(View):
    pattern: str = leaf("An expression, searched for in the whole path.")
    replacement: str = leaf("What stands there instead; $1 to $9 are its groups.")

    made: ClassVar[Mapping[str, Made]] = {
        "pattern": Made((), lambda one: one["pattern"]),
        "replacement": Made((), lambda one: one["replacement"]),
    }


@strawberry.type(description="What is rarely needed.")
class ConnectorOption(View):
    name: OptionName = leaf("Which.")
    value: str = leaf("What it is set to; empty where being there says all.")

    made: ClassVar[Mapping[str, Made]] = {
        "name": Made((), lambda one: OptionName(one["name"])),
        "value": Made((), lambda one: one["value"]),
    }


@strawberry.type(description="Where access tokens are asked for with a refresh token.")
class ConnectorOauth(View):
    token_url: URL = leaf("Where to.")
    client_id: str = leaf("Of us.")
    scope: str | None = leaf("What tokens are for; null = as the refresh token is.")

    made: ClassVar[Mapping[str, Made]] = {
        name: Made((), lambda one, name=name: one[name])
        for name in ("token_url", "client_id", "scope")
    }


@strawberry.type(
    description="An account elsewhere whose mail comes here.",
    directives=[Auth(scope=Scope.READ)],
)
class Connector(Shape):
    name: str = leaf("Name; by default the account.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="Who gets the mail.",
    )
    protocol: Protocol = leaf("What the server speaks.")
    host: str = leaf("Its name or address.")
    port: int = leaf("Its port.")
    security: Security = leaf("How the connection is encrypted.")
    auth_mechanism: str = leaf("PLAIN, LOGIN, CRAM-MD5, XOAUTH2 or OAUTHBEARER.")
    username: str = leaf("Name of the account there.")
    oauth: ConnectorOauth | None = leaf("Where tokens come from; null = the password is one.")
    target_domain: str | None = leaf("Domain that recipients are rewritten to; null = none.")
    target_folder: str | None = leaf("All folders are made in this one; null = as they are there.")
    interval: Duration | None = leaf("Time between two runs; null = only when asked to.")
    max_age: Duration | None = leaf("What is older stays there; null = all comes.")
    max_bytes_per_second: ByteSize = leaf("0 = as fast as it can.")
    exclude: str | None = leaf("Folders that are not fetched, an expression; null = none.")
    folder_rewrites: list[FolderRewrite] = leaf("Folders that are called otherwise here.")
    auto_map_folders: bool = leaf("Sent Items go to Sent, and so on.")
    subscribe_all: bool = leaf("Folders that are made are subscribed to.")
    skip_cross_duplicates: bool = leaf("Of a message in two folders only the first comes.")
    remove_duplicates: bool = leaf("What the folder here has already does not come again.")
    source_retention: Duration | None = leaf(
        "How long after it came a message is deleted there; null = never, PT0S = at once."
    )
    mirror_deletes: bool = leaf("What is deleted there is deleted here.")
    remote_timeout: Duration = leaf("The longest silence of the server.")
    local_timeout: Duration = leaf("The longest wait for our own store.")
    custom_options: list[ConnectorOption] = leaf("What is rarely needed.")
    spam_check: bool = leaf("What comes into INBOX goes through the spam filter.")
    virus_check: bool = leaf("And through the virus filter.")
    apply_filters: bool = leaf("And through the filters of the user.")
    active: bool = leaf("In force.")
    running: bool = leaf("Now.")
    last_run_at: datetime | None = leaf("Begin of the last run.")
    last_success_at: datetime | None = leaf("End of the last run without an error.")
    last_error: str | None = leaf("What went wrong in the last run; null when fine.")
    next_run_at: datetime | None = leaf("Begin of the next run.")
    created_at: datetime = leaf("Creation.")
    updated_at: datetime | None = leaf("Last change.")

    batch = staticmethod(connector_loaders.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Connector"),
        "auth_mechanism": Made(("mechanism",), lambda name: name),
        "interval": _lasting("interval"),
        "max_age": _lasting("max_age"),
        "source_retention": _lasting("source_retention"),
        "remote_timeout": _lasting("remote_timeout"),
        "local_timeout": _lasting("local_timeout"),
        "running": Made(("run_id",), lambda key: key is not None),
        "folder_rewrites": Viewed(
            ("folder_rewrites",), lambda some: some, FolderRewrite, many=True
        ),
        "custom_options": Viewed(
            ("custom_options",), lambda some: some, ConnectorOption, many=True
        ),
        "oauth": Viewed(("oauth",), lambda one: one, ConnectorOauth),
    }

    @field("Same as sourceRetention PT0S.", "source_retention")
    def delete_source(self) -> bool:
        return bool(self.row.source_retention == 0)

    @field("Text of the last run.", cost=5)
    async def last_log(self, info: Info) -> str | None:
        lines = await info.context.load(connector_loaders.last_logs, self.row.id)
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
        requested_page = page_asked(RUNS, first, after, last, before)
        page_key = OfConnector(self.row.id, requested_page, columns(info, ConnectorRun))
        return await connected(
            info,
            ConnectorRun,
            await info.context.load(connector_loaders.runs, page_key),
            lambda row: Cursor(RUNS, row.connector_id, row.id),
            lambda: info.context.load(connector_loaders.run_counts, page_key),
        )


@strawberry.type(description="One execution of a connector.", directives=[Auth(scope=Scope.READ)])
class ConnectorRun(Shape):
    connector: Connector | None = link(
        "connector_id",
        connector_loaders.by_ids,
        Connector.maybe,
        description="Of which; null for a single import.",
    )
    state: TaskState = leaf("Where it stands.")
    unit: str = leaf("Its name in the logs of the server.")
    trial: bool = leaf("Nothing is stored, and nothing is deleted.")
    started_at: datetime | None = leaf("Begun.")
    finished_at: datetime | None = leaf("Ended.")
    stage: Stage | None = leaf("Where it is, or where it failed.")
    folder: str | None = leaf("Folder being worked on.")
    seen: BigInt = leaf("Messages there are in the folders so far.")
    imported: BigInt = leaf("Messages stored; of a trial, that would be.")
    skipped: BigInt = leaf("Messages left out, or known already.")
    deleted_remote: BigInt = leaf("Deleted at the source.")
    bytes: ByteSize = leaf("Fetched.")
    error: str | None = leaf("What went wrong.")
    log: list[str] = leaf("What happened, line by line; of too many the middle is left out.")

    batch = staticmethod(connector_loaders.runs_by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("ConnectorRun"),
        "unit": Made(("id",), lambda key: f"connector-run-{key}"),
    }


async def connector_page(
    info: Info, user_id: int, page: tuple[Any, Any, Any, Any]
) -> Connection[Connector]:
    """Load a page of the connectors of an account.

    `page_arguments` are: first, after, last, before.
    """
    requested_page = page_asked(OF_USER, *page)
    page_key = OfUser(user_id, requested_page, columns(info, Connector))
    return await connected(
        info,
        Connector,
        await info.context.load(connector_loaders.of_users, page_key),
        lambda row: Cursor(OF_USER, row.user_id, row.id),
        lambda: info.context.load(connector_loaders.counts_of_users, page_key),
    )


@strawberry.input(description="Which connectors.")
class ConnectorFilter(Conditions):
    users: UserSelection | None = leaf("Of these.", default=UNSET)
    active: bool | None = leaf("In force, or not.", default=UNSET)
    failing: bool | None = leaf("Whose last run failed, or not.", default=UNSET)


@strawberry.input(description="Input of connectorRun.")
class ConnectorRunInput(IdsInput):
    trial: bool = leaf("Store nothing and delete nothing: only look.", default=False)


@strawberry.type(description="Connectors, as they are now.")
class ConnectorsPayload(MutationPayload):
    connectors: list[Connector] = leaf("In the order of the ids.", default_factory=list)


@strawberry.type(description="Runs, as they are now.")
class ConnectorRunPayload(MutationPayload):
    runs: list[ConnectorRun] = leaf("In the order of the ids.", default_factory=list)


@strawberry.type
class ConnectorQuery:
    @query(
        "Connectors of the viewer, account by account; for administrators those of their users, "
        "for a DOMAIN_ADMIN with SYNCJOBS.",
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
        where = _where(filter) if filter else ConnectorWhere()
        list_ordering = ordering(ORDER, None if where == ConnectorWhere() else where)
        requested_page = page_asked(list_ordering, first, after, last, before)
        return await connected(
            info,
            Connector,
            await connector_loaders.page(
                info.context, where, requested_page, columns(info, Connector)
            ),
            lambda row: Cursor(requested_page.ordering, row.user_id, row.id),
            lambda: connector_loaders.count(info.context, where),
        )

    @query("One run of a connector, or of a single import.", scope=Scope.READ)
    async def connector_run(self, info: Info, id: strawberry.ID) -> ConnectorRun | None:
        row = await info.context.load(
            connector_loaders.runs_by_ids, global_ids.decode("ConnectorRun", id)
        )
        return ConnectorRun.maybe(row)


@strawberry.type
class ConnectorMutation:
    @mutation("Removes connectors, all or none; mail that they have fetched stays.", **WRITES)
    async def connector_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await connector_mutations.remove(info.context, keys_of(info, "Connector", input.ids))
        return DeletePayload(deleted_ids=input.ids)

    @mutation(
        "Has connectors run now, also those that are switched off; of one that runs already it is "
        "the run that is under way.",
        **WRITES,
    )
    async def connector_run(self, info: Info, input: ConnectorRunInput) -> ConnectorRunPayload:
        keys = keys_of(info, "Connector", input.ids)
        return await runs_now(
            info, await connector_mutations.start(info.context, keys, trial=input.trial)
        )

    @mutation(
        "Ends runs at the next safe point: what has come stays, and the next run goes on from "
        "there. Runs that have ended stay as they are. Those of connectors need SYNCJOBS.",
        scope=Scope.MAIL,
    )
    async def connector_cancel(self, info: Info, input: IdsInput) -> ConnectorRunPayload:
        keys = keys_of(info, "ConnectorRun", input.ids)
        await connector_mutations.stop(info.context, keys)
        return await runs_now(info, keys)


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
        rows = progress.of_runs(ctx) if key is None else progress.of_run(ctx, key)
        async for row in rows:
            yield ConnectorRun.of(row)


async def runs_now(info: Info, keys: list[int]) -> ConnectorRunPayload:
    """Load connector runs and return the payload with them."""
    rows = await info.context.load_all(connector_loaders.runs_by_ids, keys)
    return ConnectorRunPayload(runs=[ConnectorRun.of(row) for row in rows if row])


async def connectors_now(info: Info, keys: list[int]) -> ConnectorsPayload:
    """Load connectors and return the payload with them."""
    rows = await info.context.load_all(connector_loaders.by_ids, keys)
    return ConnectorsPayload(connectors=[Connector.of(row) for row in rows if row])


def _where(given: ConnectorFilter) -> ConnectorWhere:
    """Convert the filter to conditions of the resolvers."""
    return ConnectorWhere(
        users_named(given.users, path="filter") if given.users else None,
        None if given.active is UNSET else given.active,
        None if given.failing is UNSET else given.failing,
    )

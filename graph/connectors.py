"""Accounts elsewhere whose mail comes here, as the API shows them."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph import ids
from graph.connections import Connection, connected, page_asked
from graph.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.fields import Auth, Info, field, query
from graph.mutations import mutation
from graph.refs import UserRef, UserSelection, keys_of, owner_named
from graph.rows import Shape, columns, identified, link, shaped
from graph.scalars import BigInt, ByteSize, Duration
from graph.views import Made, View, Viewed
from mail.connectors.servers import Stage
from models.connectors import Protocol, Security
from models.pages import Cursor, ordering
from models.roles import Scope, UserPermission
from models.tasks import TaskState
from resolvers import connectors, users
from resolvers.connectors import ConnectorWhere

if TYPE_CHECKING:
    from graph.users import User

ORDER = "connectors"
strawberry.enum(
    Protocol, name="ConnectorProtocol", description="What the server elsewhere speaks."
)
strawberry.enum(Security, name="ConnectorSecurity", description="How the connection is encrypted.")
strawberry.enum(Stage, name="ConnectorStage", description="Where a run is, or where it failed.")


def _lasting(column: str) -> Made:
    """A column of seconds."""
    return Made((column,), lambda many: None if many is None else timedelta(seconds=many))


@strawberry.type(description="A folder is called otherwise here.")
class FolderRewrite(View):
    pattern: str = leaf("An expression, searched for in the whole path.")
    replacement: str = leaf("What stands there instead; $1 to $9 are its groups.")

    made: ClassVar[Mapping[str, Made]] = {
        "pattern": Made((), lambda one: one["pattern"]),
        "replacement": Made((), lambda one: one["replacement"]),
    }


@strawberry.type(
    description="An account elsewhere whose mail comes here.",
    directives=[Auth(scope=Scope.READ)],
)
class Connector(Shape):
    name: str = leaf("Name; by default the account.")
    user: Annotated["User", strawberry.lazy("graph.users")] = link(
        "user_id", users.by_ids, shaped("graph.users", "User"), description="Who gets the mail."
    )
    protocol: Protocol = leaf("What the server speaks.")
    host: str = leaf("Its name or address.")
    port: int = leaf("Its port.")
    security: Security = leaf("How the connection is encrypted.")
    auth_mechanism: str = leaf("PLAIN, LOGIN, CRAM-MD5, XOAUTH2 or OAUTHBEARER.")
    username: str = leaf("Name of the account there.")
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

    batch = staticmethod(connectors.by_ids)
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
    }

    @field("Same as sourceRetention PT0S.", "source_retention")
    def delete_source(self) -> bool:
        return bool(self.row.source_retention == 0)

    @field("Text of the last run.", cost=5)
    async def last_log(self, info: Info) -> str | None:
        lines = await info.context.load(connectors.last_logs, self.row.id)
        return None if lines is None else "\n".join(lines)

    @field("The last hundred runs, newest first.")
    async def runs(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> Connection["ConnectorRun"]:
        ask = page_asked(RUNS, first, after, None, None)
        wanted = OfConnector(self.row.id, ask, columns(info, ConnectorRun))
        return await connected(
            info,
            ConnectorRun,
            await info.context.load(connectors.runs, wanted),
            lambda row: Cursor(RUNS, row.connector_id, row.id),
            lambda: info.context.load(connectors.run_counts, wanted),
        )


@strawberry.type(
    description="One execution of a connector.", directives=[Auth(scope=Scope.READ)]
)
class ConnectorRun(Shape):
    connector: Connector | None = link(
        "connector_id", connectors.by_ids, Connector.maybe, description="Of which."
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

    batch = staticmethod(connectors.runs_by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("ConnectorRun"),
        "unit": Made(("id",), lambda key: f"connector-run-{key}"),
    }


@strawberry.input(description="A folder is called otherwise here.")
class FolderRewriteInput:
    pattern: str = leaf("An expression, searched for in the whole path.")
    replacement: str = leaf("What stands there instead; $1 to $9 are its groups.")


@strawberry.input(description="Which connectors.")
class ConnectorFilter:
    users: UserSelection | None = leaf("Of these.", default=UNSET)
    active: bool | None = leaf("In force, or not.", default=UNSET)
    failing: bool | None = leaf("Whose last run failed, or not.", default=UNSET)


class _Given:
    """What inputs of connectors have in common: their columns."""

    def said(self) -> dict[str, Any]:
        """What is given, by column."""
        found = {
            column: value
            for name, column in COLUMNS.items()
            if (value := getattr(self, name, UNSET)) is not UNSET
        }
        if (some := getattr(self, "folder_rewrites", UNSET)) is not UNSET:
            found["folder_rewrites"] = [
                {"pattern": one.pattern, "replacement": one.replacement} for one in some or ()
            ]
        if getattr(self, "delete_source", UNSET) is True:
            if found.get("source_retention"):
                text = "the same as sourceRetention PT0S: one of both"
                raise Invalid(text, constraint="exclusive", path=["deleteSource"])
            found["source_retention"] = timedelta(0)
        return found


PLAIN = (
    "name", "protocol", "host", "port", "security", "username", "target_domain", "target_folder",
    "interval", "max_age", "max_bytes_per_second", "exclude", "auto_map_folders", "subscribe_all",
    "skip_cross_duplicates", "remove_duplicates", "source_retention", "mirror_deletes",
    "remote_timeout", "local_timeout", "spam_check", "virus_check", "apply_filters", "active",
)  # fmt: skip
COLUMNS = {name: name for name in PLAIN} | {"auth_mechanism": "mechanism"}
HALF_AN_HOUR, TEN_MINUTES = timedelta(minutes=30), timedelta(minutes=10)
UNWANTED = "(?i)spam|(?i)junk"


@strawberry.input(description="Input of connectorCreate.")
class ConnectorCreateInput(Options, _Given):
    user: UserRef | None = leaf("Who gets the mail; default: the viewer.", default=UNSET)
    name: str | None = leaf("At most 255 characters; default: the account.", default=UNSET)
    protocol: Protocol = leaf("What the server speaks.", default=Protocol.IMAP)
    host: str = leaf("Name or address, public unless connectors.allowPrivate is set.")
    port: int | None = leaf("Default: that of protocol and security.", default=UNSET)
    security: Security = leaf("PLAIN only where private networks are.", default=Security.TLS)
    username: str = leaf("Name of the account there.")
    password: str = leaf("Password, or refresh token of XOAUTH2 and OAUTHBEARER; never returned.")
    auth_mechanism: str = leaf(
        "PLAIN, LOGIN, CRAM-MD5, XOAUTH2 or OAUTHBEARER.", default="PLAIN"
    )
    target_domain: str | None = leaf("Domain that recipients are rewritten to.", default=UNSET)
    target_folder: str | None = leaf("All folders are made in this one.", default=UNSET)
    interval: Duration | None = leaf(
        "Between two runs, more than PT4M and at most P30D; null = only when asked to.",
        default=HALF_AN_HOUR,
    )
    max_age: Duration | None = leaf("What is older stays there.", default=UNSET)
    max_bytes_per_second: ByteSize = leaf("0 = as fast as it can.", default=0)
    exclude: str | None = leaf("Folders that are not fetched, an expression.", default=UNWANTED)
    folder_rewrites: list[FolderRewriteInput] | None = leaf("At most 50.", default=UNSET)
    auto_map_folders: bool = leaf("Sent Items go to Sent, and so on.", default=True)
    subscribe_all: bool = leaf("Folders that are made are subscribed to.", default=True)
    skip_cross_duplicates: bool = leaf("Of a message in two folders only the first.", default=False)
    remove_duplicates: bool = leaf("What the folder here has already comes not.", default=True)
    source_retention: Duration | None = leaf(
        "How long after it came a message is deleted there; null = never.", default=UNSET
    )
    delete_source: bool = leaf("Same as sourceRetention PT0S.", default=False)
    mirror_deletes: bool = leaf("What is deleted there is deleted here.", default=False)
    remote_timeout: Duration = leaf("The longest silence, PT1S to PT1H.", default=TEN_MINUTES)
    local_timeout: Duration = leaf("The longest wait for us, PT1S to PT1H.", default=TEN_MINUTES)
    spam_check: bool = leaf("Through the spam filter.", default=True)
    virus_check: bool = leaf("Through the virus filter.", default=True)
    apply_filters: bool = leaf("Through the filters of the user.", default=False)
    active: bool = leaf("In force.", default=True)


@strawberry.input(description="What of a connector changes; absent = unchanged.")
class ConnectorPatch(_Given):
    name: str = leaf("At most 255 characters.", default=UNSET)
    protocol: Protocol = leaf("What the server speaks.", default=UNSET)
    host: str = leaf("Name or address.", default=UNSET)
    port: int = leaf("Its port.", default=UNSET)
    security: Security = leaf("How the connection is encrypted.", default=UNSET)
    username: str = leaf("Name of the account there.", default=UNSET)
    password: str = leaf("Another password.", default=UNSET)
    auth_mechanism: str = leaf("How one signs in.", default=UNSET)
    target_domain: str | None = leaf("Domain that recipients are rewritten to.", default=UNSET)
    target_folder: str | None = leaf("All folders are made in this one.", default=UNSET)
    interval: Duration | None = leaf("Between two runs; null = only when asked to.", default=UNSET)
    max_age: Duration | None = leaf("What is older stays there.", default=UNSET)
    max_bytes_per_second: ByteSize = leaf("0 = as fast as it can.", default=UNSET)
    exclude: str | None = leaf("Folders that are not fetched, an expression.", default=UNSET)
    folder_rewrites: list[FolderRewriteInput] = leaf("In place of those before.", default=UNSET)
    auto_map_folders: bool = leaf("Sent Items go to Sent, and so on.", default=UNSET)
    subscribe_all: bool = leaf("Folders that are made are subscribed to.", default=UNSET)
    skip_cross_duplicates: bool = leaf("Of a message in two folders only the first.", default=UNSET)
    remove_duplicates: bool = leaf("What the folder here has already comes not.", default=UNSET)
    source_retention: Duration | None = leaf("When it is deleted there.", default=UNSET)
    delete_source: bool = leaf("Same as sourceRetention PT0S.", default=UNSET)
    mirror_deletes: bool = leaf("What is deleted there is deleted here.", default=UNSET)
    remote_timeout: Duration = leaf("The longest silence.", default=UNSET)
    local_timeout: Duration = leaf("The longest wait for us.", default=UNSET)
    spam_check: bool = leaf("Through the spam filter.", default=UNSET)
    virus_check: bool = leaf("Through the virus filter.", default=UNSET)
    apply_filters: bool = leaf("Through the filters of the user.", default=UNSET)
    active: bool = leaf("In force; one that is switched on runs at once.", default=UNSET)


@strawberry.input(description="Input of connectorUpdate.")
class ConnectorUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    set: ConnectorPatch = leaf("What changes.")


@strawberry.input(description="Input of connectorRun.")
class ConnectorRunInput(IdsInput):
    trial: bool = leaf("Store nothing and delete nothing: only look.", default=False)


@strawberry.input(description="Input of connectorCheck.")
class ConnectorCheckInput(Options):
    protocol: Protocol = leaf("What the server speaks.")
    security: Security = leaf("How the connection is encrypted.")
    host: str = leaf("Name or address.")
    port: int | None = leaf("Default: that of protocol and security.", default=UNSET)
    username: str = leaf("Name of the account there.")
    password: str = leaf("Its password.")
    auth_mechanism: str = leaf("How one signs in.", default="PLAIN")
    timeout: Duration = leaf("The longest silence, PT1S to PT1M.", default=timedelta(seconds=10))


@strawberry.type(description="A stage of a check.")
class ConnectorCheckStage:
    stage: Stage = leaf("Which.")
    ok: bool = leaf("It went well.")
    said: str = leaf("What was wrong, in the words of the server where it has some.")


@strawberry.type(description="Answer of connectorCreate.")
class ConnectorPayload(MutationPayload):
    connector: Connector | None = leaf("The connector.", default=None)


@strawberry.type(description="Connectors, as they are now.")
class ConnectorsPayload(MutationPayload):
    connectors: list[Connector] = leaf("In the order of the ids.", default_factory=list)


@strawberry.type(description="Answer of connectorRun and connectorCancel.")
class ConnectorRunPayload(MutationPayload):
    runs: list[ConnectorRun] = leaf("In the order of the ids.", default_factory=list)


@strawberry.type(description="Answer of connectorCheck.")
class ConnectorCheckPayload(MutationPayload):
    ok: bool = leaf("Mail can be fetched.", default=False)
    stages: list[ConnectorCheckStage] = leaf("As far as it went.", default_factory=list)
    capabilities: list[str] = leaf("What the server offers.", default_factory=list)
    folders: list[str] = leaf("Folders, at most 1,000.", default_factory=list)


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
        where = await _where(info, filter) if filter else ConnectorWhere()
        kind = ordering(ORDER, None if where == ConnectorWhere() else where)
        ask = page_asked(kind, first, after, last, before)
        return await connected(
            info,
            Connector,
            await connectors.page(info.context, where, ask, columns(info, Connector)),
            lambda row: Cursor(ask.ordering, row.user_id, row.id),
            lambda: connectors.count(info.context, where),
        )


WRITES: dict[str, Any] = {"scope": Scope.SETTINGS, "user_permission": UserPermission.SYNCJOBS}

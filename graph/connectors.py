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

"""GraphQL types of components, of the health of a server, and of storage."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection
from graph.types.errors import attribute_field
from graph.types.fields import Auth, field
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField, View
from graph.types.references import optional_tuple
from graph.types.scalars import ByteSize, Duration
from models.runtime.components import ComponentKind, ComponentState
from models.users.roles import Role, Scope
from resolvers.health.loaders import ComponentConditions

UNRESPONSIVE_NODES_DESCRIPTION = (
    "Nodes (`host:port`) with a process that did not answer within a second. Their components "
    "are missing. Empty if the list is complete."
)
ADMIN_READ = Auth(role=Role.ADMIN, scope=Scope.READ)


@strawberry.type(
    description="Part of one server process: a listener, a background worker, or a service that "
    "the process depends on.",
    directives=[ADMIN_READ],
)
class Component(View):
    name: str = attribute_field(
        "Name of the component, such as `smtp`, `queue` or `database`. Each process has its own "
        "component of that name."
    )
    kind: ComponentKind = attribute_field(
        "Kind of the component: a listener, a worker or a dependency."
    )
    state: ComponentState = attribute_field(
        "State of the component. That of a dependency is the result of a probe that ended at most "
        "a second ago; of `acmeDirectory`, at most 80 seconds ago. It is STARTING if no such probe "
        "has ended yet."
    )
    state_changed_at: datetime = attribute_field(
        "Time since which the component has its state. For a dependency: when a probe first found "
        "this state."
    )
    detail: str | None = attribute_field(
        "Reason for the state, for people. Null if the component runs."
    )
    node: str = attribute_field("Name (`host:port`) of the node that has the process.")
    pid: int = attribute_field("Process ID of the process.")
    address: str | None = attribute_field(
        "Address or folder of a listener or dependency, without credentials. Null for a worker "
        "and for a component that is not configured."
    )
    version: str | None = attribute_field(
        "Version that a dependency reports about itself, such as `PostgreSQL 16.4`. Null for other "
        "components, and for a dependency that reports none."
    )
    latency: Duration | None = attribute_field(
        "Duration of the last probe of a dependency. Null for other components, before the first "
        "probe, if the probe failed, and if the dependency is not configured."
    )
    probed_at: datetime | None = attribute_field(
        "Time when the last probe of a dependency ended. Null for other components, before the end "
        "of the first probe, and for a dependency that is not configured."
    )


@strawberry.type(description="A page of a list of components.")
class ComponentConnection(Connection[Component]):
    unresponsive_nodes: list[str] = attribute_field(UNRESPONSIVE_NODES_DESCRIPTION)

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **Connection.derived_fields,
        "unresponsive_nodes": DerivedField((), lambda paged: list(paged.unresponsive_nodes)),
    }


@strawberry.input(description="Conditions on components. All must hold.")
class ComponentFilter(ConditionsInput):
    names: list[str] | None = attribute_field(
        "Returns only components with one of these names (case matters). An empty list returns "
        "none.",
        default=UNSET,
    )
    nodes: list[str] | None = attribute_field(
        "Returns only components of nodes with one of these names (`host:port`) or hosts (case is "
        "ignored). An empty list returns none.",
        default=UNSET,
    )
    kinds: list[ComponentKind] | None = attribute_field(
        "Returns only components of one of these kinds. An empty list returns none.", default=UNSET
    )
    states: list[ComponentState] | None = attribute_field(
        "Returns only components in one of these states. An empty list returns none.", default=UNSET
    )

    def to_conditions(self) -> ComponentConditions:
        """Return the conditions for the resolvers."""
        return ComponentConditions(
            optional_tuple(self.names),
            optional_tuple(self.nodes),
            optional_tuple(self.kinds),
            optional_tuple(self.states),
        )


@strawberry.type(description="Health of the server process that answers the request.")
class Health(View):
    ok: bool = attribute_field(
        "False if the latest probe of the database or of the object store of messages failed, or "
        "has had no answer for 0.7 seconds. `/health/ready` also checks whether the server accepts "
        "requests."
    )
    version: str = attribute_field("Version of Merganser.")
    uptime: Duration = attribute_field("Time since the start of the server process.")

    @field(
        "State of the listeners and workers of the process that answers, and of its dependencies "
        "such as the database, ordered by name.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    def checks(self) -> list[Component]:
        return [Component.from_row(row) for row in self.row.checks]


@strawberry.type(
    description="Space of one store on one node.",
    directives=[ADMIN_READ],
)
class StorageStatus(View):
    store: str = attribute_field(
        "Name of the store: `database`, `logs`, `blobs`, `coldBlobs` or `spool`."
    )
    node: str = attribute_field("Name (`host:port`) of the node that reports the store.")
    device: str = attribute_field(
        "File or folder of the store, URL of its bucket, or `PostgreSQL`."
    )
    size: ByteSize | None = attribute_field(
        "Size in bytes of the data of the store itself. For PostgreSQL: as of its last VACUUM or "
        "ANALYZE. Null for folders and buckets, since they would have to be listed."
    )
    total: ByteSize | None = attribute_field(
        "Size in bytes of the disk that has the store. Null for buckets and PostgreSQL, and if the "
        "folder is missing."
    )
    used: ByteSize | None = attribute_field(
        "Used part of the store's disk in bytes, also by other programs. Null for buckets and "
        "PostgreSQL, and if the folder is missing."
    )
    free: ByteSize | None = attribute_field(
        "Part of the store's disk that the server can still use, in bytes. Null for buckets and "
        "PostgreSQL, and if the folder is missing."
    )
    used_percent: float | None = attribute_field(
        "Used part of the store's disk in percent, from 0 to 100, as `df` shows it, with one "
        "decimal. Null for buckets and PostgreSQL, and if the folder is missing."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "device": DerivedField(("address",), str),
    }


@strawberry.type(description="Space of the stores of all nodes.", directives=[ADMIN_READ])
class StorageReport(View):
    stores: list[StorageStatus] = attribute_field(
        "Stores, ordered by node and name. Processes of a node that use the same store report it "
        "once."
    )
    unresponsive_nodes: list[str] = attribute_field(
        "Nodes (`host:port`) with a process that did not answer within a second. Empty if the "
        "report is complete. At most 1,000."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "stores": DerivedField(
            ("stores",), lambda rows: [StorageStatus.from_row(row) for row in rows]
        ),
        "unresponsive_nodes": DerivedField(("unresponsive_nodes",), list),
    }

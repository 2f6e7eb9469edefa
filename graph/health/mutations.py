"""Mutations that stop and start components and servers."""

from datetime import datetime, timedelta
from typing import Any

import strawberry
from strawberry import UNSET

from graph.health.types import Component
from graph.sessions.types import SESSION_COST
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.references import value_or_none
from graph.types.scalars import Duration
from models.users.roles import Role, Scope
from resolvers.health import server_control, update

CONTROL_GUARD: dict[str, Any] = {"role": Role.ROOT, "scope": Scope.FULL, "cost": SESSION_COST}
NODE_DESCRIPTION = (
    "Name (`host:port`) of the only node on which the mutation takes effect, or a host that has "
    "only one node. NOT_FOUND if no server runs on it. VALIDATION for a host with several nodes. "
    "Default: all nodes."
)
UNRESPONSIVE_NODES_DESCRIPTION = (
    "Nodes (`host:port`) with a process that did not answer within a second. Empty if all "
    "processes answered."
)
DEFAULT_GRACE = timedelta(seconds=10)


@strawberry.input(description="Input of componentStop.")
class ComponentStopInput(Options):
    components: list[str] = attribute_field(
        "Names of the listeners and workers to stop, 1 to 100, such as `smtp` or `queue`. Case "
        "matters. Another name is the error VALIDATION."
    )
    node: str | None = attribute_field(NODE_DESCRIPTION, default=UNSET)


@strawberry.input(description="Input of componentStart.")
class ComponentStartInput(Options):
    components: list[str] = attribute_field(
        "Names of the listeners and workers to start, 1 to 100, such as `smtp` or `queue`. Case "
        "matters. Another name is the error VALIDATION."
    )
    node: str | None = attribute_field(NODE_DESCRIPTION, default=UNSET)


@strawberry.type(description="Payload of componentStop and componentStart.")
class ComponentsPayload(MutationPayload):
    components: list[Component] = attribute_field(
        "The components of these names in each process of these nodes, as they are now. One that "
        "still finishes its work is STOPPING. Empty if the mutation failed. With `validateOnly` "
        "they are unchanged.",
        default_factory=list,
    )
    unresponsive_nodes: list[str] = attribute_field(
        "Nodes (`host:port`) with a process that did not answer within a second. Such a process "
        "applies the change as soon as it answers again, or when it is started again. Empty if all "
        "processes answered.",
        default_factory=list,
    )


@strawberry.input(description="Input of serverStop.")
class ServerStopInput(Options):
    grace: Duration = attribute_field(
        "Longest time for which a server still answers requests while it drains, from 0 seconds "
        "to 10 minutes. Then the next server stops. The setting MERGANSER_SHUTDOWN_DRAIN can be "
        "shorter.",
        default=Duration(DEFAULT_GRACE),
    )
    node: str | None = attribute_field(NODE_DESCRIPTION, default=UNSET)


@strawberry.type(description="Payload of serverStop.")
class ServerStopPayload(MutationPayload):
    stopping_at: datetime | None = attribute_field(
        "Time when the first server stops, within a second. Null if the mutation failed.",
        default=None,
    )


@strawberry.input(description="Input of configReload.")
class ConfigReloadInput(Options):
    node: str | None = attribute_field(NODE_DESCRIPTION, default=UNSET)


@strawberry.type(description="Payload of configReload.")
class ConfigReloadPayload(MutationPayload):
    changed_keys: list[str] = attribute_field(
        "Names of the settings whose values in the file or the environment differ from those in "
        "use, as names of variables, in alphabetical order. Empty if nothing differs, or the "
        "mutation failed.",
        default_factory=list,
    )
    restart_required_keys: list[str] = attribute_field(
        "Those of `changedKeys` whose new values apply only after a restart of the server. The "
        "others apply now.",
        default_factory=list,
    )
    unresponsive_nodes: list[str] = attribute_field(
        UNRESPONSIVE_NODES_DESCRIPTION, default_factory=list
    )


def _components_payload(changed: update.ChangedComponents) -> ComponentsPayload:
    return ComponentsPayload(
        components=[Component.from_row(row) for row in changed.rows],
        unresponsive_nodes=list(changed.unresponsive_nodes),
    )


@strawberry.type
class HealthMutation:
    @mutation(
        "Stops listeners and background workers in all processes of one node or of all nodes. "
        "Each process begins the stop within a second, and finishes the current work first. A "
        "listener accepts no more connections, ends idle sessions and finishes messages in DATA. "
        "A worker finishes its current work and releases its leases. The components stay stopped "
        "after a restart, until `componentStart` starts them. Without `node`, the change replaces "
        "those for single nodes. VALIDATION for HTTP, which only `serverStop` stops, and for "
        "services that a process depends on.",
        **CONTROL_GUARD,
        atomic_exclusion=AtomicExclusion("A stop of components", forbids_idempotency_key=True),
    )
    async def component_stop(self, info: Info, input: ComponentStopInput) -> ComponentsPayload:
        changed = await update.stop_or_start_components(
            info.context, input.components, value_or_none(input.node), is_stopped=True
        )
        return _components_payload(changed)

    @mutation(
        "Starts listeners and background workers that componentStop has stopped, in all processes "
        "of one node or of all nodes, within a second. With `node`, they run on this node even if "
        "componentStop has stopped them for all nodes. On a node that is DRAINING or DOWN, they "
        "can start later. A component that runs is no error.",
        **CONTROL_GUARD,
        atomic_exclusion=AtomicExclusion("A start of components", forbids_idempotency_key=True),
    )
    async def component_start(self, info: Info, input: ComponentStartInput) -> ComponentsPayload:
        changed = await update.stop_or_start_components(
            info.context, input.components, value_or_none(input.node), is_stopped=False
        )
        return _components_payload(changed)

    @mutation(
        "Stops the servers of one node, or of all nodes one after another, as SIGTERM does, and "
        "answers before that. The server that answers is the last one. With `validateOnly` none "
        "stops.",
        **CONTROL_GUARD,
        atomic_exclusion=AtomicExclusion("A stop of servers", forbids_idempotency_key=True),
    )
    async def server_stop(self, info: Info, input: ServerStopInput) -> ServerStopPayload:
        return ServerStopPayload(
            stopping_at=await server_control.start_stopping_servers_in_turn(
                info.context, value_or_none(input.node), input.grace
            )
        )

    @mutation(
        "Reloads the settings file MERGANSER_CONFIG, and the certificate files, of one node or of "
        "all nodes. Values that `settingSet` has stored keep their precedence. No connection "
        "ends. If a file can't be used, nothing changes on any node. The error VALIDATION gives "
        "the reason, and for the settings file the line. With `validateOnly` the files are only "
        "checked.",
        **CONTROL_GUARD,
        atomic_exclusion=AtomicExclusion("A reload of settings", forbids_idempotency_key=True),
    )
    async def config_reload(self, info: Info, input: ConfigReloadInput) -> ConfigReloadPayload:
        reloaded = await server_control.reload_config(info.context, value_or_none(input.node))
        return ConfigReloadPayload(
            changed_keys=list(reloaded.changed_keys),
            restart_required_keys=list(reloaded.restart_keys),
            unresponsive_nodes=list(reloaded.unresponsive_nodes),
        )

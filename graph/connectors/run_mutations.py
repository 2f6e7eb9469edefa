"""Mutations that start, cancel and delete connectors, and the progress of a run."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import strawberry
from strawberry import UNSET

from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info, subscription
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED, OVERSEEN
from graph.types.object_references import id_from_ref, ids_from_refs
from models.users.roles import AdminPermission, Scope
from resolvers.admin import progress
from resolvers.connectors import loaders as connector_loaders
from resolvers.connectors import mutations as connector_mutations

if TYPE_CHECKING:
    pass
from graph.connectors.types import (
    RUN_ARGUMENT,
    WRITE_GUARD,
    ConnectorRef,
    ConnectorRun,
    ConnectorRunRef,
)


@strawberry.input(description="Input of connectorStart.")
class ConnectorStartInput(Options):
    connectors: list[ConnectorRef] = attribute_field("Connectors to start, 1 to 1,000 by default.")
    dry_run: bool = attribute_field(
        "True queues a dry run: it counts the messages that it would fetch, but stores and "
        "deletes none. No effect for a connector that already has a run that is queued or in "
        "progress. The mutation then returns that run, even if it is not a dry run.",
        default=False,
    )


@strawberry.input(description="Input of connectorRunCancel.")
class ConnectorRunCancelInput(Options):
    connector_runs: list[ConnectorRunRef] = attribute_field(
        "Runs of connectors and mail imports to cancel, 1 to 1,000 by default."
    )


@strawberry.input(description="Input of connectorDelete.")
class ConnectorDeleteInput(Options):
    connectors: list[ConnectorRef] = attribute_field("Connectors to delete, 1 to 1,000 by default.")


@strawberry.type(description="Payload of connectorStart, connectorRunCancel and mailImport.")
class ConnectorRunsPayload(MutationPayload):
    connector_runs: list[ConnectorRun] = attribute_field(
        "Runs in the order of the references. Runs of mailImport: one for each user, sorted by "
        "the creation of the user.",
        default_factory=list,
    )


@strawberry.type
class ConnectorRunMutation:
    @mutation(
        "Deletes connectors with their runs, all or none. A run in progress ends. Fetched "
        "messages stay, here and on the remote server. The deletion is in the security log of the "
        "user, who gets a message if somebody else did it. LIMIT_REACHED for more than 1,000 "
        "references (by default).",
        **WRITE_GUARD,
    )
    async def connector_delete(self, info: Info, input: ConnectorDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.connectors, "connectors")
        await connector_mutations.delete_connectors(info.context, keys)
        return DeletePayload.of_keys("Connector", keys)

    @mutation(
        "Queues a run of each connector, also of inactive ones, all or none. A worker executes "
        "it, but not while the user of the connector is inactive. If a connector already has a "
        "run that is queued or in progress, that run is returned and none is added. LIMIT_REACHED "
        "for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def connector_start(self, info: Info, input: ConnectorStartInput) -> ConnectorRunsPayload:
        keys = ids_from_refs(info, input.connectors, "connectors")
        run_ids = await connector_mutations.queue_or_find_runs(
            info.context, keys, is_dry_run=input.dry_run
        )
        return await load_run_payload(info, run_ids)

    @mutation(
        "Cancels runs of connectors and mail imports, all or none: queued ones at once, running "
        "ones at their next safe point. Stored messages stay. The next run of a connector "
        "continues after them; a cancelled import can't be continued. Finished runs are "
        "unchanged, and are no error. A USER needs the permission CONNECTORS for runs of "
        "connectors, but not for mail imports. LIMIT_REACHED for more than 1,000 references (by "
        "default).",
        scope=Scope.MAIL,
        access=MANAGED.with_permissions(AdminPermission.CONNECTORS),
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
        "Streams a run at once and after each change, until it ends or is deleted. A run that "
        "does not exist, or that the caller can't see, is the error NOT_FOUND. Without a "
        "reference, it streams no run at first. After each change of a connector or mail import "
        "of the signed-in user, it then streams the newest run of that connector or import. Runs "
        "of other users are not contained, and the stream does not end.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.CONNECTORS),
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
            else progress.follow_connector_run_until_finished(ctx, key)
        )
        async for row in rows:
            yield ConnectorRun.from_row(row)


async def load_run_payload(info: Info, run_ids: list[int]) -> ConnectorRunsPayload:
    """Load connector runs and return the payload with them."""
    rows = await info.context.load_many(connector_loaders.load_visible_runs_by_id, run_ids)
    return ConnectorRunsPayload(connector_runs=[ConnectorRun.from_row(row) for row in rows if row])

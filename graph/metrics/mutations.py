"""Mutation of usage counters."""

from datetime import datetime

import strawberry
from strawberry import UNSET

from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import LONG_MUTATION_COST, mutation
from graph.types.references import optional_tuple
from models.metrics.names import MetricName
from models.users.roles import Role, Scope
from resolvers.metrics import resets


@strawberry.input(description="Input of metricsReset.")
class MetricsResetInput(Options):
    names: list[MetricName] | None = attribute_field(
        "Counters to reset, 1 to 100. CONNECTED_SESSIONS and MEMORY are current values without a "
        "reset: naming them is the error VALIDATION. Default: all others.",
        default=UNSET,
    )


@strawberry.type(description="Payload of metricsReset.")
class MetricsResetPayload(MutationPayload):
    reset_at: datetime | None = attribute_field(
        "Time from which the counters count. Null if the mutation failed.", default=None
    )


@strawberry.type
class MetricMutation:
    @mutation(
        "Resets usage counters of all processes and nodes to zero, in sets of every kind. "
        "Processes that are unreachable now reset theirs before they next answer. Statistics, and "
        "the metrics of `GET /metrics`, are not changed. The audit log records the reset.",
        role=Role.ROOT,
        scope=Scope.FULL,
        cost=LONG_MUTATION_COST,
    )
    async def metrics_reset(self, info: Info, input: MetricsResetInput) -> MetricsResetPayload:
        reset_at = await resets.reset_metrics(info.context, optional_tuple(input.names))
        return MetricsResetPayload(reset_at=reset_at)

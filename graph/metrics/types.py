"""GraphQL types of usage counters and statistics."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.types import global_ids
from graph.types.connections import Connection
from graph.types.errors import attribute_field
from graph.types.fields import Auth
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField, NestedViewField, View
from graph.types.scalars import Duration
from models.metrics.names import METRIC_DESCRIPTIONS, MetricName, MetricSetKind, StatisticName
from models.observability.metrics import OTHER
from models.users.roles import Role
from resolvers.metrics.loaders import MetricSetRow
from resolvers.metrics.statistics import StatisticSeriesRow, StatisticsRow

UNRESPONSIVE_NODES_DESCRIPTION = (
    "Nodes (`host:port`) with a process that did not answer within a second. Their counts are "
    "missing. Empty if the counts are complete."
)


def _shown_key(metric_type: MetricSetKind, key: str | None) -> str | None:
    if metric_type is MetricSetKind.SESSION and key is not None and key != OTHER:
        return global_ids.encode("Session", int(key))
    return key


@strawberry.type(description="Usage counter with its value.", directives=[Auth(role=Role.ADMIN)])
class MetricCounter(View):
    name: MetricName = attribute_field("Counter that the value belongs to.")
    value: float = attribute_field(
        "Sum over all processes since the last reset. A process that started later counts from "
        "its start. CONNECTED_SESSIONS and MEMORY are the sums of the present values, which a "
        "reset does not change."
    )
    unit: str | None = attribute_field(
        "Unit of the value: `s` for seconds, `By` for bytes. Null: the value is a number of things."
    )
    description: str = attribute_field("Text for people that describes the counter, in English.")
    reset_at: datetime | None = attribute_field(
        "Time of the last reset of the counter. Null: it was never reset."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "unit": DerivedField(("name",), lambda name: METRIC_DESCRIPTIONS[name].unit),
        "description": DerivedField(("name",), lambda name: METRIC_DESCRIPTIONS[name].text),
    }


@strawberry.type(
    description="Usage counters of the platform, or of one domain, user, IP address, session or "
    "command. Each process counts at most 10,000 keys of a type. If there are more, the least used "
    "ones are left out, and the key `other` has their sum.",
    directives=[Auth(role=Role.ADMIN)],
)
class MetricSet(View):
    type: MetricSetKind = attribute_field(
        "Kind of the set: for the platform, or for what its `key` names."
    )
    key: str | None = attribute_field(
        "Key of the set: the name of a domain, a username, an IP address, the global ID of a "
        "session, or the name of a command. `other` has the sum of the keys that were left out. A "
        "deleted domain or user has a number. Null: the counters are those of the whole platform."
    )
    counters: list[MetricCounter] = attribute_field(
        "Counters of the set in a fixed order, as far as `names` of the request allows. Counters "
        "that the operating system does not have are missing."
    )
    updated_at: datetime | None = attribute_field(
        "Time of the last operation, command, sign-in or delivery that the set counted. Null: "
        "there was none."
    )
    reset_at: datetime | None = attribute_field(
        "Time of the last reset of one of the set's counters. Null: none was reset."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "key": DerivedField(("type", "key"), _shown_key),
        "counters": NestedViewField(("counters",), list, MetricCounter, is_list=True),
    }

    @classmethod
    def from_metric_row(cls, row: MetricSetRow) -> "MetricSet":
        """Return the GraphQL object of a set of counters."""
        return cls.from_row(row)


@strawberry.type(description="A page of a list of sets of usage counters.")
class MetricSetConnection(Connection[MetricSet]):
    unresponsive_nodes: list[str] = attribute_field(UNRESPONSIVE_NODES_DESCRIPTION)

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **Connection.derived_fields,
        "unresponsive_nodes": DerivedField((), lambda paged: list(paged.unresponsive_nodes)),
    }


@strawberry.input(description="Conditions on sets of usage counters. All must hold.")
class MetricFilter(ConditionsInput):
    key: str | None = attribute_field(
        "Returns only the set of this domain, user, IP address, session or command, as "
        "`MetricSet.key` shows it. A user can also be named by address. A deleted domain or user "
        "can't be named. At most 320 characters. An unknown key returns no set. With the type "
        "GLOBAL a key is an error. Default: all sets.",
        default=UNSET,
    )
    names: list[MetricName] | None = attribute_field(
        "Returns only these counters of each set, 1 to 100. Those that the type doesn't have are "
        "left out. Default: all that the type has.",
        default=UNSET,
    )
    updated_since: datetime | None = attribute_field(
        "Returns only sets that were used at this time or later. GLOBAL ignores it.",
        default=UNSET,
    )


@strawberry.type(description="Values of one statistic, one for each step.")
class StatisticSeries:
    name: StatisticName = attribute_field("Statistic that the points of the series belong to.")
    points: list[float | None] = attribute_field(
        "Values in the order of the steps, the first for the step that begins at `startsAt`. Null: "
        "no server ran in the step, it is in the future or older than the statistics are kept, or "
        "the value is not known. At most 2,000."
    )

    @classmethod
    def from_series_row(cls, row: StatisticSeriesRow) -> "StatisticSeries":
        """Return the GraphQL object of a series."""
        return cls(name=row.name, points=list(row.points))


@strawberry.type(
    description="Series of statistics for charts. All series have the same steps.",
    directives=[Auth(role=Role.DOMAIN_ADMIN)],
)
class Statistics:
    starts_at: datetime = attribute_field("Start of the first step of the series.")
    ends_at: datetime = attribute_field(
        "End of the last step of the series, which can be in the future."
    )
    step: Duration = attribute_field("Length of each step of the series.")
    series: list[StatisticSeries] = attribute_field(
        "A series for each name of the request. At most 20."
    )
    unresponsive_nodes: list[str] = attribute_field(
        "Nodes (`host:port`) with a process that did not answer within a second. Their counts of"
        " the last minute are missing. A DOMAIN_ADMIN gets `other` instead of the names. Empty "
        "if the statistics are complete. At most 1,000."
    )

    @classmethod
    def from_statistics_row(cls, row: StatisticsRow) -> "Statistics":
        """Return the GraphQL object of statistics."""
        return cls(
            starts_at=row.starts_at,
            ends_at=row.ends_at,
            step=Duration(row.step),
            series=[StatisticSeries.from_series_row(series) for series in row.series],
            unresponsive_nodes=list(row.unresponsive_nodes),
        )

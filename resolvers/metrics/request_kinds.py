"""The requests about metrics that each server process answers."""

from resolvers.metrics.loaders import READ_METRICS
from resolvers.metrics.resets import APPLY_RESETS
from resolvers.metrics.statistics import UNWRITTEN_STATISTICS
from resolvers.metrics.statistics_writer import ACTIVE_USERS

METRICS_REQUEST_KINDS = (READ_METRICS, APPLY_RESETS, UNWRITTEN_STATISTICS, ACTIVE_USERS)

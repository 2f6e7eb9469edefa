"""Reset usage counters of all processes. Prometheus counters and statistics go on."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.events.journal import PLATFORM
from models.metrics.names import GAUGES, MetricName
from models.metrics.process_counters import process_counters_since_start
from models.metrics.tables import MetricReset
from models.runtime.environment import Environment
from models.store.columns import insert_with_conflict
from models.store.keyset_pages import EPOCH
from models.users.roles import Role, Scope
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth.credential_cache import cache_of_database
from resolvers.cluster.process_requests import ProcessRequestKind, ask_all_processes
from resolvers.context import Context
from resolvers.metrics.usage_settlement import add_user_counts_to_domains
from resolvers.metrics.validation import require_resettable_names
from resolvers.viewer import GuardRule

WRITE_RULE = GuardRule(role=Role.ROOT, scope=Scope.FULL)
RESETTABLE_NAMES = tuple(name for name in MetricName if name not in GAUGES)
MICROSECOND = timedelta(microseconds=1)

ResetTimes = Mapping[str, int]  # microseconds since 1970 by the name of a counter


async def reset_metrics(ctx: Context, names: Collection[MetricName] | None) -> datetime:
    """Reset counters of all processes, by default all; return the time of the reset.

    The reset is stored. All processes apply it within a second after the commit, or before they
    next answer, so every later answer counts from the reset. Raises InvalidInput for a gauge.
    """
    ctx.viewer.require(WRITE_RULE)
    require_resettable_names(names)
    chosen = sorted(set(RESETTABLE_NAMES if names is None else names))
    now = ctx.environment.now()
    async with ctx.write_session(PLATFORM) as session:
        connection = await session.connection()
        insert = insert_with_conflict(ctx.environment.database.dialect, MetricReset)
        await connection.execute(
            insert.on_conflict_do_update(
                index_elements=[col(MetricReset.name)],
                set_={"reset_at": insert.excluded.reset_at},
            ),
            [{"name": name.value, "reset_at": now} for name in chosen],
        )
        entry = NewAuditLogEntry(
            "metricsReset", "MetricSet", after={"names": [name.value for name in chosen]}
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
    resets = {name.value: (now - EPOCH) // MICROSECOND for name in chosen}
    ctx.call_after_commit_or_now(partial(_apply_everywhere_in_background, ctx.environment, resets))
    return now


def _apply_everywhere_in_background(environment: Environment, resets: ResetTimes) -> None:
    request = ask_all_processes(environment, APPLY_RESETS, {"resets": dict(resets)})
    cache_of_database(environment.database).run_in_background(request)


async def load_reset_times(environment: Environment) -> dict[str, int]:
    """Load the last reset of each counter that was reset."""
    statement = select(col(MetricReset.name), col(MetricReset.reset_at))
    return {
        row.name: (row.reset_at - EPOCH) // MICROSECOND
        for row in await environment.database.read(statement)
    }


def time_of_reset(microseconds: int) -> datetime:
    """Convert the time of a reset."""
    return EPOCH + microseconds * MICROSECOND


async def apply_resets(environment: Environment, resets: ResetTimes) -> None:
    """Apply the resets that this process has not applied yet."""
    recorder = environment.usage
    if all(recorder.applied_resets.get(name, -1) >= at for name, at in resets.items()):
        return
    await add_user_counts_to_domains(environment)  # what was counted before must not count later
    new_names = [
        name for name in MetricName if recorder.applied_resets.get(name, -1) < resets.get(name, -1)
    ]
    recorder.set_counters_to_zero(new_names)
    current = process_counters_since_start(environment)
    recorder.process_baseline |= {name: current[name] for name in new_names if name in current}
    recorder.applied_resets |= resets


async def skip_stored_resets(environment: Environment) -> None:
    """Note, when a process begins, that its counters are later than all stored resets."""
    recorder = environment.usage
    for name, at in (await load_reset_times(environment)).items():
        recorder.applied_resets.setdefault(name, at)


async def _answer_reset(environment: Environment, arguments: Mapping[str, Any]) -> dict[str, Any]:
    await apply_resets(environment, arguments["resets"])
    return {}


APPLY_RESETS = ProcessRequestKind("METRICS_RESET", _answer_reset, applies_late=True)

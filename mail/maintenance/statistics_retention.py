"""Delete the statistics that are too old, and those of deleted domains."""

from sqlalchemy import delete, exists, func, select
from sqlmodel import col

from models.domains.tables import Domain
from models.metrics.tables import RETENTION_BY_STEP, StatisticStep
from models.metrics.usage_recorder import PLATFORM_ID
from models.runtime.environment import DatabaseTransaction, Environment


async def delete_old_steps(environment: Environment) -> int:
    """Delete old statistics of each domain and of the platform, and return the number of rows.

    Each domain has its own short transaction and reads only its ranges of the primary key.
    """
    deleted_count, domain_id = 0, -1
    while (next_id := await _load_next_domain_id(environment, domain_id)) is not None:
        domain_id = next_id
        deleted_count += await _delete_old_steps_of_domain(environment, domain_id)
    return deleted_count


async def _load_next_domain_id(environment: Environment, after_id: int) -> int | None:
    """Load the lowest id of a domain with statistics after this id; None if there is none."""
    column = col(StatisticStep.domain_id)
    rows = await environment.database.read(select(func.min(column)).where(column > after_id))
    next_id: int | None = rows[0][0]
    return next_id


async def _delete_old_steps_of_domain(environment: Environment, domain_id: int) -> int:
    now = int(environment.now().timestamp())
    is_domain = select(exists().where(col(Domain.id) == domain_id))
    of_domain = col(StatisticStep.domain_id) == domain_id

    def delete_steps(transaction: DatabaseTransaction) -> int:
        connection = transaction.connection
        if domain_id != PLATFORM_ID and not connection.execute(is_domain).scalar():
            return connection.execute(delete(StatisticStep).where(of_domain)).rowcount
        return sum(
            connection.execute(
                delete(StatisticStep).where(
                    of_domain,
                    col(StatisticStep.step_seconds) == step,
                    col(StatisticStep.started_at) < now - int(retention.total_seconds()),
                )
            ).rowcount
            for step, retention in RETENTION_BY_STEP.items()
        )

    return await environment.run_transaction(delete_steps)

"""Add the counts of users to their domains, with the domains of the database."""

from sqlalchemy import select
from sqlmodel import col

from models.metrics.tables import SHORT_STEP
from models.runtime.environment import Environment
from models.users.tables import User

MAX_IDS_PER_SELECT = 5000


def step_start_of(environment: Environment, step_seconds: int = SHORT_STEP) -> int:
    """Return the start of the current step in seconds since 1970."""
    now = int(environment.now().timestamp())
    return now - now % step_seconds


async def load_domain_ids_by_user(
    environment: Environment, user_ids: list[int]
) -> dict[int, int | None]:
    """Load the domains of users. Users without a domain, and deleted ones, have None."""
    domain_ids: dict[int, int | None] = dict.fromkeys(user_ids)
    for start in range(0, len(user_ids), MAX_IDS_PER_SELECT):
        part = user_ids[start : start + MAX_IDS_PER_SELECT]
        statement = select(col(User.id), col(User.domain_id)).where(col(User.id).in_(part))
        for row in await environment.database.read(statement):
            domain_ids[row.id] = row.domain_id
    return domain_ids


async def add_user_counts_to_domains(
    environment: Environment, step_start: int | None = None
) -> None:
    """Add the counts of users to the counters and statistics of their domains.

    They count for the current step of the statistics, or for the one that begins at `step_start`.
    Without new counts of users it reads nothing.
    """
    user_ids = environment.usage.unsettled_user_ids()
    domain_ids = await load_domain_ids_by_user(environment, user_ids) if user_ids else {}
    environment.usage.add_counts_to_domains_and_platform(
        domain_ids, step_start_of(environment) if step_start is None else step_start
    )

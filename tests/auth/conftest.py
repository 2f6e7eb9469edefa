"""A database with users who sign in."""

from collections.abc import AsyncIterator

import pytest

from models.domains.tables import AliasDomain, Domain
from models.runtime.environment import Environment
from resolvers.auth import authentication
from tests.conftest import ManualClock
from tests.support.accounts.sign_in_environment import SignInEnvironment


@pytest.fixture
async def sign_in_environment(
    environment: Environment, clock: ManualClock
) -> AsyncIterator[SignInEnvironment]:
    """Yield an environment with user ada of example.org and the alias domain example.com."""
    new_environment, now = (
        SignInEnvironment(environment, clock, domain_id=environment.new_id()),
        clock(),
    )
    async with environment.write_session() as session:
        session.add(
            Domain(id=new_environment.domain_id, name="example.org", created_at=now, updated_at=now)
        )
        await session.flush()
        session.add(
            AliasDomain(
                id=environment.new_id(),
                alias="example.com",
                domain_id=new_environment.domain_id,
                created_at=now,
            )
        )
    await new_environment.add_user("ada")
    yield new_environment
    await authentication.wait_for_background_tasks(environment)

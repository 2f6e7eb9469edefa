"""A database with users who sign in."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from models.domains.tables import Domain, DomainAlias
from models.events.wakeups import Wakeups
from models.runtime.environment import Environment
from models.store.database import Database
from resolvers.auth import authentication
from tests.conftest import ManualClock
from tests.support.accounts.credential_check_process import OtherProcess
from tests.support.accounts.sign_in_environment import SignInEnvironment
from tests.support.stores.recorded_statements import record_sql


@pytest.fixture
async def sign_in_environment(
    environment: Environment, clock: ManualClock
) -> AsyncIterator[SignInEnvironment]:
    """Yield an environment with user ada of example.org and the alias domain example.com."""
    new_environment = SignInEnvironment(environment, clock, domain_id=environment.new_id())
    now = clock()
    async with environment.write_session() as session:
        session.add(
            Domain(id=new_environment.domain_id, name="example.org", created_at=now, updated_at=now)
        )
        await session.flush()
        session.add(
            DomainAlias(
                id=environment.new_id(),
                alias="example.com",
                domain_id=new_environment.domain_id,
                created_at=now,
            )
        )
    await new_environment.add_user("ada")
    yield new_environment
    await authentication.wait_for_background_tasks(environment)


@pytest.fixture
async def other_process(sign_in_environment: SignInEnvironment) -> AsyncIterator[OtherProcess]:
    """Another process on the same database, which receives no wake-ups."""
    database = Database(sign_in_environment.environment.database.url)
    environment = replace(sign_in_environment.environment, database=database, wakeups=Wakeups())
    yield OtherProcess(
        replace(sign_in_environment, environment=environment),
        record_sql(database, with_background=True),
    )
    await authentication.wait_for_background_tasks(environment)
    await database.close()

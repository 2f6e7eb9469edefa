"""A second process on the database of a sign-in environment."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Delete, Insert, Update
from sqlmodel import col

from models.users.tables import User
from resolvers.auth import authentication
from resolvers.viewer import Viewer
from tests.support.accounts.sign_in_environment import SignInEnvironment

WriteStatement = Update | Delete | Insert


@dataclass
class OtherProcess:
    """Another process on the same database that receives no wake-ups."""

    sign_in_environment: SignInEnvironment
    statements: list[str]

    async def authenticate(self, secret: str, ip: str = "192.0.2.1") -> Viewer:
        return await authentication.authenticate_request(
            self.sign_in_environment.environment, {"authorization": f"Bearer {secret}"}, ip=ip
        )

    async def use_for_30_seconds(self, secret: str) -> Viewer:
        """Use the credential for 30 s, and check that the viewer comes from the cache then."""
        await self.authenticate(secret)
        self.sign_in_environment.clock.tick(seconds=2)
        await self.authenticate(secret)  # reads the changes before
        self.pop_lookup_count()
        self.sign_in_environment.clock.tick(seconds=28)
        viewer = await self.authenticate(secret)
        assert self.pop_lookup_count() == 0
        return viewer

    def pop_lookup_count(self) -> int:
        """Return the number of credential lookups since the last call."""
        count = sum(
            "digest = " in statement and "SELECT" in statement for statement in self.statements
        )
        del self.statements[:]
        return count


async def commit_statement(
    sign_in_environment: SignInEnvironment, statement: WriteStatement
) -> None:
    """Commit a statement without a notice to any process."""
    async with sign_in_environment.environment.write_session() as session:
        await (await session.connection()).execute(statement)


def is_ada(sign_in_environment: SignInEnvironment) -> Any:
    return col(User.id) == sign_in_environment.users["ada"]

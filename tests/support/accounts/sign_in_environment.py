"""A store with users for sign-in tests, and their credentials."""

import base64
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.auth.application_passwords import ApplicationPassword
from models.domains.tables import Domain
from models.errors import AuthenticationFailed, Unauthenticated
from models.events.journal import Stream
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin, User
from resolvers.auth import app_password_validation, authentication, impersonation
from resolvers.auth.authentication import AuthenticatedUser
from resolvers.auth.passwords import password_hashes
from resolvers.auth.sign_in import SignInRequest
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import ManualClock

PASSWORD = "correct horse battery"  # noqa: S105 - a test's
FULL_SCOPES = frozenset({Scope.FULL})
TOKEN_REQUEST = SignInRequest(token=True)
APP_PASSWORD = "qwkzjvhxpbmfytrn"  # noqa: S105 - a test's


@dataclass
class SignInEnvironment:
    """A store with a clock and a domain of users who sign in by password."""

    environment: Environment
    clock: ManualClock
    domain_id: int = 0
    users: dict[str, int] = field(default_factory=dict)

    async def add_user(self, name: str, **columns: Any) -> int:
        """Add a user with these column values and return its id."""
        user_id = self.environment.new_id()
        now = self.clock()
        password_hash = await password_hashes.hash_password(self.environment, PASSWORD)
        row = {"password": password_hash, "tenant_id": self.domain_id, "created_at": now, **columns}
        async with self.environment.write_session() as session:
            session.add(Stream(id=user_id))
            session.add(User(id=user_id, username=name, username_key=name, updated_at=now, **row))
        self.users[name] = user_id
        return user_id

    async def change_user(self, name: str, **columns: Any) -> None:
        """Change columns of a user without a wake-up, as another process does."""
        async with self.environment.write_session() as session:
            is_user = col(User.id) == self.users[name]
            await session.exec(update(User).where(is_user).values(**columns))

    async def load_user_row(self, name: str) -> Any:
        """Load the row of a user."""
        query = select(core_table(User)).where(col(User.id) == self.users[name])
        (row,) = await self.environment.database.read(query)
        return row

    def user_context(
        self, name: str, role: Role = Role.USER, scopes: frozenset[Scope] = FULL_SCOPES
    ) -> Context:
        """The context of a request by a user."""
        return Context(self.environment, Viewer(self.users[name], role, scopes))

    async def sign_in(
        self,
        name: str,
        password: str = PASSWORD,
        attempt: SignInRequest | None = None,
        ip: str | None = "192.0.2.1",
    ) -> AuthenticatedUser:
        """Sign a user in by password."""
        ctx = Context(self.environment, Viewer(), client_ip=ip)
        return await authentication.authenticate_user_by_password(ctx, name, password, attempt)

    async def create_token(self, name: str, **request_values: Any) -> str:
        """Sign a user in and return the secret of a new token."""
        signed_in = await self.sign_in(name, attempt=replace(TOKEN_REQUEST, **request_values))
        assert signed_in.token
        return signed_in.token

    async def authenticate(self, secret: str, **options: Any) -> Viewer:
        """Authenticate a request with this bearer token."""
        headers = {"authorization": f"Bearer {secret}"}
        return await authentication.authenticate_request(
            self.environment, headers, ip="192.0.2.1", **options
        )

    async def is_refused(self, secret: str) -> bool:
        """True if a request with this bearer token is refused."""
        try:
            await self.authenticate(secret)
        except Unauthenticated:
            return True
        return False


async def fail_sign_ins(
    sign_in_environment: SignInEnvironment, name: str, times: int, ip: str | None = None
) -> None:
    """Try to sign in with a wrong password, several times."""
    for _ in range(times):
        with pytest.raises(AuthenticationFailed):
            await sign_in_environment.sign_in(name, "wrong", ip=ip)


async def sign_in_by_token(
    sign_in_environment: SignInEnvironment, name: str
) -> tuple[Context, str]:
    """Sign in for a token; return the context of a request with it, and the token."""
    token = await sign_in_environment.create_token(name)
    return Context(
        sign_in_environment.environment, await sign_in_environment.authenticate(token)
    ), token


async def make_domain_admin_context(
    sign_in_environment: SignInEnvironment, name: str = "dora", **columns: Any
) -> Context:
    """Add a DOMAIN_ADMIN of example.org and return the context of a request by that user."""
    permissions = [AdminPermission.IMPERSONATE.value]
    user_id = await sign_in_environment.add_user(
        name, role=Role.DOMAIN_ADMIN, admin_permissions=permissions, **columns
    )
    async with sign_in_environment.environment.write_session() as session:
        session.add(DomainAdmin(user_id=user_id, domain_id=sign_in_environment.domain_id))
    return Context(
        sign_in_environment.environment,
        await sign_in_environment.authenticate(await sign_in_environment.create_token(name)),
    )


async def add_other_domain(sign_in_environment: SignInEnvironment) -> int:
    """Add the domain other.example and return its id."""
    domain_id = sign_in_environment.environment.new_id()
    async with sign_in_environment.environment.write_session() as session:
        session.add(
            Domain(
                id=domain_id,
                name="other.example",
                created_at=sign_in_environment.clock(),
                updated_at=sign_in_environment.clock(),
            )
        )
    return domain_id


def basic_auth_header(name: str, password: str) -> dict[str, str]:
    """The Authorization header of HTTP Basic authentication (RFC 7617)."""
    return {"authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


async def sign_in_by_basic_auth(
    sign_in_environment: SignInEnvironment, password: str, name: str = "ada"
) -> Viewer:
    """Authenticate a request by HTTP Basic authentication."""
    return await authentication.authenticate_request(
        sign_in_environment.environment, basic_auth_header(name, password), ip="192.0.2.1"
    )


async def add_app_password(
    sign_in_environment: SignInEnvironment, scopes: list[str], **columns: Any
) -> int:
    """Add an app password of ada with these scopes and return its id."""
    password_id, now = sign_in_environment.environment.new_id(), sign_in_environment.clock()
    row = ApplicationPassword(
        id=password_id,
        user_id=sign_in_environment.users["ada"],
        description="Phone",
        selector=app_password_validation.password_selector(APP_PASSWORD),
        password=await password_hashes.hash_password(sign_in_environment.environment, APP_PASSWORD),
        scopes=scopes,
        created_at=now,
        **columns,
    )
    async with sign_in_environment.environment.write_session() as session:
        session.add(row)
    return password_id


async def create_impersonation_token(
    sign_in_environment: SignInEnvironment, ctx: Context, name: str = "ada", **options: Any
) -> str:
    """Create a token by which the caller acts as another user."""
    created = await impersonation.create_impersonation_token(
        ctx, sign_in_environment.users[name], **options
    )
    assert created.token
    return created.token


async def make_admin_context(sign_in_environment: SignInEnvironment) -> Context:
    """Add the administrator rex and return the context of a request by that user."""
    await sign_in_environment.add_user("rex", role=Role.ADMIN)
    return Context(
        sign_in_environment.environment,
        await sign_in_environment.authenticate(await sign_in_environment.create_token("rex")),
    )

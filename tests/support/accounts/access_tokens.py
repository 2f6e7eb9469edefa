"""Access tokens that are stored without a sign-in."""

from typing import Any

from models.auth.credentials import AccessToken
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.users.tables import User
from resolvers.auth.credential_status import TOKEN_PREFIX, generate_secret, secret_digest


async def make_access_token(
    environment: Environment, user: User | ColumnRow, **columns: Any
) -> str:
    """Add an access token of a user and return its secret."""
    secret, now = generate_secret(environment, TOKEN_PREFIX), environment.now()
    row = AccessToken(
        id=environment.new_id(), user_id=user.id, digest=secret_digest(secret), auth_version=1,
        created_at=now, last_used_at=now, expires_at=now + environment.options.tokens_idle_timeout,
        **columns,
    )  # fmt: skip
    async with environment.write_session(user.id) as session:
        session.add(row)
    return secret

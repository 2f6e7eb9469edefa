"""OAuth access tokens outside GraphQL: at the userinfo endpoint and in SMTP sign-in."""

from typing import Any

from sqlalchemy import ColumnElement, Select, select
from sqlmodel import col

from models.auth.credentials import AccessToken
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from resolvers.auth.credential_status import is_user_enabled_sql, secret_digest
from resolvers.oauth.issuer import Issuer
from resolvers.oauth.token_rows import is_possible_secret
from resolvers.oauth.user_claims import claims_sql, user_claims


def valid_token_sql(
    environment: Environment, condition: ColumnElement[bool]
) -> Select[*tuple[Any, ...]]:
    """SQL: valid access tokens of OAuth clients with the columns of their users."""
    user_columns = [column for column in select_columns(User) if column.name != "id"]
    return (
        select(
            col(AccessToken.id).label("token_id"),
            col(AccessToken.oauth_scopes).label("token_scopes"),
            col(AccessToken.expires_at).label("token_expires_at"),
            col(User.id),
            *user_columns,
        )
        .join(User, col(User.id) == col(AccessToken.user_id))
        .where(
            condition,
            col(AccessToken.oauth_grant_id).is_not(None),
            col(AccessToken.expires_at) > environment.now(),
            col(AccessToken.created_at) > environment.now() - environment.options.tokens_max_age,
            col(AccessToken.auth_version) == col(User.auth_version),
            is_user_enabled_sql(),
        )
    )


async def find_valid_token(environment: Environment, text: str) -> ColumnRow | None:
    """Return the row of a valid token with the columns of its user; None if it is not valid."""
    if not is_possible_secret(text):
        return None
    is_token = col(AccessToken.digest) == secret_digest(text)
    for row in await environment.database.read(valid_token_sql(environment, is_token)):
        return row
    return None


async def find_valid_token_by_id(environment: Environment, token_id: int) -> ColumnRow | None:
    """Return the row of a valid token by its id; None if it is not valid."""
    is_token = col(AccessToken.id) == token_id
    for row in await environment.database.read(valid_token_sql(environment, is_token)):
        return row
    return None


async def load_claims_of_token(
    environment: Environment, issuer: Issuer, row: ColumnRow
) -> dict[str, Any]:
    """Load the claims that the scopes of a token allow."""
    for user in await environment.database.read(claims_sql(row.id)):
        return user_claims(user, issuer.subject_of_user(row.id), row.token_scopes)
    return {"sub": issuer.subject_of_user(row.id)}

"""The stored OAuth clients as the protocol code of authlib uses them."""

import hmac
from dataclasses import dataclass

from authlib.oauth2.rfc6749 import ClientMixin
from sqlalchemy import Connection, bindparam, select
from sqlmodel import col

from models.oauth.tables import OauthClient
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import PreparedStatement, fetch_rows
from resolvers.auth.credential_status import secret_digest
from resolvers.oauth import redirect_uris, scopes

MAX_CLIENT_ID_LENGTH = 64  # characters
SECRET_AUTHENTICATION_METHODS = ("client_secret_basic", "client_secret_post")
ALL_AUTHENTICATION_METHODS = (*SECRET_AUTHENTICATION_METHODS, "none")


@dataclass(frozen=True, slots=True)
class RegisteredClient(ClientMixin):  # type: ignore[misc]
    """A client with the checks of RFC 6749."""

    row: ColumnRow

    @property
    def client_id(self) -> str:
        """The public identifier."""
        return str(self.row.client_id)

    @property
    def is_public(self) -> bool:
        """True if the client has no secret."""
        return self.row.secret_digest is None

    def get_client_id(self) -> str:
        """Return the public identifier."""
        return self.client_id

    def get_default_redirect_uri(self) -> None:
        """Return None: a request must name its redirect URI."""

    def get_allowed_scope(self, scope: str | None) -> str | None:
        """Return the allowed ones of the requested scopes; None if there are none."""
        allowed = scopes.allowed_scopes_in_order(scope or "", self.row.scopes)
        return scopes.scope_text(allowed) or None

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """True if a request can name this redirect URI."""
        return redirect_uris.is_registered_redirect_uri(self.row.redirect_uris, redirect_uri)

    def check_client_secret(self, client_secret: str) -> bool:
        """True if this is the secret of the client."""
        digest = self.row.secret_digest
        return digest is not None and hmac.compare_digest(secret_digest(client_secret), digest)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """True if the client can authenticate by this method.

        A public client can't use introspection.
        """
        if self.is_public:
            return method == "none" and endpoint != "introspection"
        return method in SECRET_AUTHENTICATION_METHODS

    def check_response_type(self, response_type: str) -> bool:
        """True for the code flow."""
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        """True if the client can use this grant type."""
        return grant_type in self.row.grant_types


_FIND_CLIENT = PreparedStatement(
    select(*select_columns(OauthClient)).where(col(OauthClient.client_id) == bindparam("client_id"))
)


def _is_possible_client_id(client_id: str) -> bool:
    has_text = client_id.isascii() and "\0" not in client_id
    return has_text and 0 < len(client_id) <= MAX_CLIENT_ID_LENGTH


def find_client_in_transaction(connection: Connection, client_id: str) -> RegisteredClient | None:
    """Return the client with this identifier; None if there is none."""
    if not _is_possible_client_id(client_id):
        return None
    for row in fetch_rows(connection, _FIND_CLIENT, {"client_id": client_id}):
        return RegisteredClient(row)
    return None


async def find_client(environment: Environment, client_id: str) -> RegisteredClient | None:
    """Return the client with this identifier; None if there is none."""
    if not _is_possible_client_id(client_id):
        return None
    for row in await environment.database.read_prepared(_FIND_CLIENT, {"client_id": client_id}):
        return RegisteredClient(row)
    return None

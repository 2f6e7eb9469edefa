"""Connectors of an account, and the account record of its export."""

import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from sqlalchemy import select
from sqlmodel import col

from mail.archives import secret_encryption
from models.connectors import Connector, ConnectorProtocol, ConnectorSecurity
from models.store.columns import select_columns
from resolvers.connectors import credentials
from resolvers.connectors import mutations as connector_mutations
from resolvers.connectors.options import OptionName
from resolvers.connectors.transfer import FILE_FIELDS
from tests.conftest import GraphQLClient, client_context

PASSPHRASE = "correct horse battery staple"  # noqa: S105 - of tests
PASSWORDS = ("pw-of-the-far-account", "refresh-token-xyzzy")
CLIENT_SECRET = "secret-of-our-client"  # noqa: S105 - of the test
FULL_CONNECTOR: dict[str, Any] = {  # no field has its default
    "name": "Work",
    "protocol": ConnectorProtocol.IMAP,
    "host": "imap.example.net",
    "port": 1993,
    "security": ConnectorSecurity.STARTTLS,
    "auth_mechanism": "LOGIN",
    "username": "ada@example.net",
    "target_domain": "example.org",
    "target_folder": "Old/Work",
    "interval": timedelta(hours=3),
    "max_age": timedelta(days=99),
    "max_bytes_per_second": 5 << 30,
    "exclude": "Spam|Junk",
    "folder_rewrites": [{"pattern": "^A/(.*)", "replacement": "B/$1"}],
    "auto_map_folders": False,
    "subscribe_all": False,
    "skip_cross_duplicates": True,
    "remove_duplicates": False,
    "mirror_deletes": True,
    "remote_timeout": timedelta(seconds=77),
    "local_timeout": timedelta(seconds=88),
    "custom_options": [{"name": OptionName.MIN_AGE, "value": "P1D"}],
    "spam_check": False,
    "virus_check": False,
    "apply_filters": True,
}
OAUTH_CONNECTOR: dict[str, Any] = {
    "name": "Tokens",
    "protocol": ConnectorProtocol.IMAP,
    "host": "mail.example.com",
    "security": ConnectorSecurity.TLS,
    "auth_mechanism": "XOAUTH2",
    "username": "ada",
    "interval": None,
    "source_retention": timedelta(0),
    "oauth": {
        "token_url": "https://login.example.com/token",
        "client_id": "merganser",
        "client_secret": CLIENT_SECRET,
        "scope": "mail",
    },
}


@pytest.fixture
def cheap_key_derivation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive the keys of archives with a small cost. The tests of `secret_encryption` use the full.

    One derivation at full cost takes longer than an export and an import.
    """

    def scrypt_with_small_cost(**parameters: Any) -> Scrypt:
        return Scrypt(**{**parameters, "n": 2})

    monkeypatch.setattr(secret_encryption, "Scrypt", scrypt_with_small_cost)


async def create_connectors(client: GraphQLClient) -> None:
    for arguments, password in zip((FULL_CONNECTOR, OAUTH_CONNECTOR), PASSWORDS, strict=True):
        await connector_mutations.create_connector(
            client_context(client), None, arguments, password
        )


async def load_connectors(client: GraphQLClient) -> list[dict[str, Any]]:
    """Return the connectors of an account with decrypted secrets, without IDs and times."""
    statement = select(*select_columns(Connector)).where(col(Connector.user_id) == client.user.id)
    connectors = []
    for row in await client.environment.database.read(statement.order_by(col(Connector.id))):
        facts = {column: getattr(row, column) for column, _ in FILE_FIELDS.values()}
        secret = credentials.decrypt_secret(client.environment, row.id, row.secret)
        connectors.append({**facts, "secret": secret, "due": row.next_run_at is not None})
    return connectors


def account_record(content: bytes) -> dict[str, Any]:
    """Return the account record of a JSON Lines export."""
    account: dict[str, Any] = json.loads(content.splitlines()[0])
    return account


def with_account_changes(content: bytes, **changes: Any) -> bytes:
    """Return the export with changed fields of the account record."""
    first_line, *other_lines = content.splitlines(keepends=True)
    return b"".join(
        [json.dumps({**json.loads(first_line), **changes}).encode(), b"\n", *other_lines]
    )

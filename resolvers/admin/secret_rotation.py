"""All columns encrypted by the secret box: count values by key, and re-encrypt them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select, update
from sqlmodel import SQLModel

from mail.authentication import signing_keys
from mail.queue import enqueue
from mail.recipients import forward_targets
from mail.routing import password_contexts
from models.addresses.tables import Address
from models.auth.second_factors import TotpSecret
from models.certificates import AcmeAccount, Certificate
from models.connectors import Connector
from models.domains.dkim_keys import DkimKey
from models.identity_providers import IdentityLink, IdentityProvider
from models.notifications.push_channels import PushChannel, VapidKeyPair
from models.notifications.webhooks import Webhook
from models.oauth.tables import OauthSigningKey
from models.queue.tables import QueueEntry
from models.routing.tables import RelayHost, Transport
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow, core_table, select_columns
from models.users.tables import User
from resolvers.auth.second_factors import totp
from resolvers.certificates import acme_accounts, stored_certificates
from resolvers.connectors import credentials
from resolvers.identity_providers import provider_records
from resolvers.notifications import push_requests, web_push, webhook_signatures
from resolvers.oauth import signing_keys as oauth_signing_keys

ROWS_PER_TRANSACTION = 500

ReencryptionProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EncryptedColumns:
    """Encrypted columns of a table, and the context that their values are encrypted for."""

    table: type[SQLModel]
    key_column: str
    columns: tuple[str, ...]
    context_of_row: Callable[[int], str]


ENCRYPTED_COLUMNS = (
    EncryptedColumns(TotpSecret, "user_id", ("seed", "pending"), totp.secret_box_purpose),
    EncryptedColumns(Webhook, "id", ("secret", "old_secret"), webhook_signatures.secret_purpose),
    EncryptedColumns(PushChannel, "id", ("target",), push_requests.secret_purpose),
    EncryptedColumns(Address, "id", ("relays",), forward_targets.seal_context),
    EncryptedColumns(User, "id", ("relays",), forward_targets.seal_context),
    EncryptedColumns(Connector, "id", ("secret",), credentials.secret_purpose),
    EncryptedColumns(VapidKeyPair, "id", ("private",), web_push.secret_purpose),
    EncryptedColumns(DkimKey, "id", ("private",), signing_keys.secret_name),
    EncryptedColumns(RelayHost, "id", ("secret",), password_contexts.relay_host_context),
    EncryptedColumns(Transport, "id", ("secret",), password_contexts.transport_context),
    EncryptedColumns(Certificate, "id", ("private_key",), stored_certificates.encryption_context),
    EncryptedColumns(AcmeAccount, "id", ("private_key",), acme_accounts.encryption_context),
    EncryptedColumns(IdentityProvider, "id", ("client_secret",), provider_records.secret_purpose),
    EncryptedColumns(
        IdentityLink, "id", ("refresh_token",), provider_records.refresh_token_purpose
    ),
    EncryptedColumns(QueueEntry, "id", ("secret",), enqueue.secret_context),
    EncryptedColumns(
        OauthSigningKey, "id", ("private_key",), oauth_signing_keys.encryption_context
    ),
)


@dataclass(slots=True)
class ReencryptionResult:
    """The number of re-encrypted values, and the contexts of values that could not be decrypted."""

    reencrypted_count: int = 0
    failed_contexts: list[str] = field(default_factory=list)


async def count_encrypted_values_by_key(
    environment: Environment, key_names: Iterable[str]
) -> dict[str, int]:
    """Count the values that are encrypted with each of these keys."""
    count_by_key = dict.fromkeys(key_names, 0)
    for table_columns in ENCRYPTED_COLUMNS:
        for column in table_columns.columns:
            encrypted_column = core_table(table_columns.table).c[column]
            for name in count_by_key:
                statement = select(func.count().label("many")).where(
                    encrypted_column.startswith(f"{name}.")
                )
                (row,) = await environment.database.read(
                    statement.select_from(core_table(table_columns.table))
                )
                count_by_key[name] += row.many
    return count_by_key


async def reencrypt_all_secrets(
    environment: Environment, report_progress: ReencryptionProgress = lambda _count, _total: None
) -> ReencryptionResult:
    """Encrypt all values with the newest key, ROWS_PER_TRANSACTION rows per transaction.

    It can be interrupted and started again, since values with the newest key are skipped.
    """
    result, passed_count = ReencryptionResult(), 0
    total = sum([await _count_rows(environment, column) for column in ENCRYPTED_COLUMNS])
    for table_columns in ENCRYPTED_COLUMNS:
        table, last_key = core_table(table_columns.table), 0
        key_column = table.c[table_columns.key_column]
        while True:
            columns = select_columns(
                table_columns.table, (table_columns.key_column, *table_columns.columns)
            )
            statement = (
                select(*columns)
                .where(key_column > last_key)
                .order_by(key_column)
                .limit(ROWS_PER_TRANSACTION)
            )
            rows = await environment.database.read(statement)
            if not rows:
                break
            await _reencrypt_secrets_of_rows(environment, table_columns, rows, result)
            last_key, passed_count = rows[-1][columns.index(key_column)], passed_count + len(rows)
            report_progress(passed_count, total)
            environment.reach_fault_point("reseal")
    return result


async def _count_rows(environment: Environment, table_columns: EncryptedColumns) -> int:
    statement = select(func.count().label("many")).select_from(core_table(table_columns.table))
    (row,) = await environment.database.read(statement)
    return int(row.many)


async def _reencrypt_secrets_of_rows(
    environment: Environment,
    table_columns: EncryptedColumns,
    rows: Iterable[ColumnRow],
    result: ReencryptionResult,
) -> None:
    table = core_table(table_columns.table)
    changes: list[Any] = []
    for row in rows:
        row_key = getattr(row, table_columns.key_column)
        for column in table_columns.columns:
            old_value = getattr(row, column)
            if old_value is None or old_value.startswith(
                f"{environment.secret_box.newest_key_name}."
            ):
                continue
            try:
                new_value = environment.secret_box.encrypt(
                    environment.secret_box.decrypt(
                        old_value, table_columns.context_of_row(row_key)
                    ),
                    table_columns.context_of_row(row_key),
                )
            except DecryptionError:
                result.failed_contexts.append(table_columns.context_of_row(row_key))
                continue
            is_unchanged = (
                table.c[table_columns.key_column] == row_key,
                table.c[column] == old_value,
            )
            changes.append(update(table).where(*is_unchanged).values({column: new_value}))

    def run_updates(transaction: DatabaseTransaction) -> int:
        return sum(transaction.connection.execute(change).rowcount for change in changes)

    if changes:
        result.reencrypted_count += await environment.run_transaction(run_updates)

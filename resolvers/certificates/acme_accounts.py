"""The accounts of this server at ACME authorities, with encrypted keys."""

import asyncio
from dataclasses import dataclass, field

from sqlalchemy import select, update
from sqlmodel import col

from mail.tls import acme_client
from models.certificates import AcmeAccount
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError
from models.store.columns import insert_with_conflict, select_columns


@dataclass(frozen=True, slots=True)
class AcmeAccountKey:
    """An ACME account with its private key in PEM, and its URL if it is registered."""

    id: int
    private_key: str = field(repr=False)
    url: str | None


def encryption_context(account_id: int) -> str:
    """Return the context that the secret box encrypts the key of an account for."""
    return f"acme:{account_id}"


def acme_server(environment: Environment, directory_url: str) -> acme_client.AcmeServer:
    """Return the ACME server of a directory URL.

    Its CA file and external account binding are those of the options.
    """
    options, hmac = environment.options, environment.options.acme_eab_hmac
    external_account = None
    if options.acme_eab_key_id and hmac:
        external_account = (options.acme_eab_key_id, hmac.get_secret_value())
    return acme_client.AcmeServer(directory_url, options.acme_ca, external_binding=external_account)


async def load_or_create_account(environment: Environment, directory_url: str) -> AcmeAccountKey:
    """Load the account at an ACME directory; create it with a new key if there is none.

    Raises AcmeError if the stored key can't be decrypted.
    """
    statement = select(*select_columns(AcmeAccount)).where(
        col(AcmeAccount.directory) == directory_url
    )
    row = next(iter(await environment.database.read(statement)), None)
    if row is None:
        row_id = environment.new_id()
        private_key = await asyncio.to_thread(acme_client.new_account_key)
        async with environment.write_session() as session:
            insert = insert_with_conflict(environment.database.dialect, AcmeAccount).values(
                id=row_id,
                directory=directory_url,
                private_key=environment.secret_box.encrypt(private_key, encryption_context(row_id)),
                created_at=environment.now(),
            )
            upsert = insert.on_conflict_do_nothing(index_elements=["directory"])
            await (await session.connection()).execute(upsert)
        (row,) = await environment.database.read(statement)
    try:
        return AcmeAccountKey(
            row.id,
            environment.secret_box.decrypt(row.private_key, encryption_context(row.id)),
            row.url,
        )
    except DecryptionError:
        text = "The key of the ACME account can't be decrypted: restore the key file."
        raise acme_client.AcmeError(text) from None


async def store_account_url(environment: Environment, account_id: int, url: str | None) -> None:
    """Store the URL of a registered account. None if the server has forgotten the account."""
    statement = update(AcmeAccount).where(col(AcmeAccount.id) == account_id)
    async with environment.write_session() as session:
        await (await session.connection()).execute(statement.values(url=url))

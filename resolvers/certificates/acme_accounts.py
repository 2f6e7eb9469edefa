"""The accounts of this server at ACME authorities, with encrypted keys."""

import asyncio
from dataclasses import dataclass, field

from sqlalchemy import select, update
from sqlmodel import col

from mail.tls import acme_client
from models.certificates import AcmeAccount
from models.runtime.environment import World
from models.runtime.secret_box import Sealed
from models.store.columns import insert_or, picked


@dataclass(frozen=True, slots=True)
class Account:
    """An ACME account with its private key in PEM, and its URL if it is registered."""

    id: int
    key: str = field(repr=False)
    url: str | None


def place_of(account_id: int) -> str:
    """Return the context that the secret box encrypts the key of an account for."""
    return f"acme:{account_id}"


def server(world: World, directory: str) -> acme_client.Server:
    """Return the ACME server of a directory URL.

    Its CA file and external account binding are those of the options.
    """
    options, hmac = world.options, world.options.acme_eab_hmac
    binding = None
    if options.acme_eab_key_id and hmac:
        binding = (options.acme_eab_key_id, hmac.get_secret_value())
    return acme_client.Server(directory, options.acme_ca, binding=binding)


async def account(world: World, directory: str) -> Account:
    """Load the account at an ACME directory; create it with a new key if there is none.

    Raises acme_client.Failure if the stored key can't be decrypted.
    """
    asked = select(*picked(AcmeAccount)).where(col(AcmeAccount.directory) == directory)
    row = next(iter(await world.database.read(asked)), None)
    if row is None:
        row_id, pem = world.key(), await asyncio.to_thread(acme_client.new_account_key)
        async with world.write() as session:
            new = insert_or(world.database.dialect, AcmeAccount).values(
                id=row_id,
                directory=directory,
                private_key=world.vault.seal(pem, place_of(row_id)),
                created_at=world.now(),
            )
            made = new.on_conflict_do_nothing(index_elements=["directory"])
            await (await session.connection()).execute(made)
        (row,) = await world.database.read(asked)
    try:
        return Account(row.id, world.vault.open(row.private_key, place_of(row.id)), row.url)
    except Sealed:
        text = "the key of our account cannot be opened: bring the vault back"
        raise acme_client.Failure(text) from None


async def made(world: World, account_id: int, url: str | None) -> None:
    """Store the URL of a registered account. None if the server has forgotten the account."""
    this = update(AcmeAccount).where(col(AcmeAccount.id) == account_id)
    async with world.write() as session:
        await (await session.connection()).execute(this.values(url=url))

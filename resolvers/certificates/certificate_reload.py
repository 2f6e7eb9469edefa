"""Load stored certificates into the listeners of this process when they change."""

import asyncio
import logging
from contextlib import suppress

from sqlalchemy import select
from sqlmodel import col

from mail.tls.server_tls import Certificates
from mail.tls.sni_certificates import Held, Keyring
from models.certificates import Certificate
from models.events.wakeups import CERTIFICATES
from models.runtime.environment import World
from models.store.columns import Picked, picked
from resolvers.certificates.certificates import place_of

log = logging.getLogger(__name__)

LOOK = 15.0  # between checks for changes whose wake-up was lost
EACH = 100
VERSIONS = select(*picked(Certificate, ("id", "version"))).where(
    col(Certificate.chain).is_not(None)
)
WHOLE = select(
    *picked(
        Certificate,
        (
            "id", "version", "server_name", "alt_names", "not_before", "not_after", "chain",
            "private_key",
        ),
    )
)  # fmt: skip


async def any_stored(world: World) -> bool:
    """True if any certificate is stored or ordered."""
    return bool(await world.database.read(select(col(Certificate.id)).limit(1)))


def keyring(world: World, file: Certificates | None = None) -> Keyring:
    """Return an empty key ring that decrypts private keys with the secret box."""

    def opened(held: Held) -> str:
        return world.vault.open(held.key, place_of(held.id))

    return Keyring(opened, world.now, own=world.options.hostname, file=file)


async def refresh(world: World, ring: Keyring) -> None:
    """Update the key ring to the stored certificates."""
    stored = {row.id: row.version for row in await world.database.read(VERSIONS)}
    held = ring.versions
    if stored == held:
        return
    changed = [key for key, version in stored.items() if held.get(key) != version]
    come: list[Held] = []
    for start in range(0, len(changed), EACH):
        these = WHOLE.where(col(Certificate.id).in_(changed[start : start + EACH]))
        come += [_held(row) for row in await world.database.read(these) if row.chain]
    ring.change([key for key in held if key not in stored], come)
    log.info("certificates changed", extra={"held": len(stored), "read": len(come)})


def _held(row: Picked) -> Held:
    return Held(
        row.id,
        row.version,
        row.server_name,
        tuple(row.alt_names),
        row.not_before,
        row.not_after,
        row.chain,
        row.private_key,
    )


async def follow(world: World, ring: Keyring) -> None:
    """Keep the key ring up to date until cancelled.

    A wake-up triggers it at once; changes are also checked every POLL_SECONDS.
    """
    with world.wakeups.listen([CERTIFICATES]) as bell:
        while True:
            bell.clear()  # before reading: a later change sets it again
            try:
                await refresh(world, ring)
            except Exception:  # keep running: the next attempt can succeed
                log.exception("the certificates could not be read")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await bell.wait()

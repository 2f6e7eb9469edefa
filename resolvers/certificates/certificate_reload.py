"""The certificates of the store, in the listeners of this process as soon as they change."""

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

LOOK = 15.0  # seconds between two looks for what no bell told of
EACH = 100  # certificates of one read
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
    """Whether there is a certificate, or is to be one."""
    return bool(await world.database.read(select(col(Certificate.id)).limit(1)))


def keyring(world: World, file: Certificates | None = None) -> Keyring:
    """One that opens keys by the vault; it holds nothing yet."""

    def opened(held: Held) -> str:
        return world.vault.open(held.key, place_of(held.id))

    return Keyring(opened, world.now, own=world.options.hostname, file=file)


async def refresh(world: World, ring: Keyring) -> None:
    """Let the ring hold what is stored."""
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
    """Let the ring hold what is stored, until cancelled: at once, where a bell tells of it."""
    with world.wakeups.listen([CERTIFICATES]) as bell:
        while True:
            bell.clear()  # before we look: a change from here on rings again
            try:
                await refresh(world, ring)
            except Exception:  # a listener's edge: the next look may go well
                log.exception("the certificates could not be read")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await bell.wait()

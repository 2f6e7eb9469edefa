"""Certificates, as an operator at the machine lists and sets them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.tls.acme_client import Reason
from mail.tls.pem_certificates import Sent
from merganser.errors import MISUSED, Trouble
from merganser.server.environment_factory import owner
from models.certificates import Certificate
from models.errors import Refused
from models.runtime.environment import World
from models.store.columns import Picked, picked
from resolvers.certificates import certificates
from resolvers.certificates.certificates import Given, Notice

COLUMNS = (
    "server_name", "alt_names", "description", "sha256", "spki", "issuer", "not_after", "acme",
    "acme_names", "acme_state",
)  # fmt: skip


async def listed(world: World) -> list[dict[str, Any]]:
    """All certificates, by name."""
    asked = select(*picked(Certificate, COLUMNS)).order_by(col(Certificate.server_name))
    return [_plain(row) for row in await world.database.read(asked)]


def _plain(row: Picked) -> dict[str, Any]:
    return {
        "server_name": row.server_name,
        "alt_names": row.alt_names,
        "description": row.description,
        "expires_at": row.not_after and row.not_after.isoformat(),
        "fingerprint_sha256": row.sha256,
        "tlsa": row.spki and f"3 1 1 {row.spki}",
        "issuer": row.issuer,
        "acme": row.acme,
        "acme_names": row.acme_names,
        "acme_state": row.acme_state,
    }


def read(file: Path) -> str:
    """What a file holds; Trouble where it cannot be read."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "it is no text"
        raise Trouble(f"cannot read {file}: {reason}") from None


async def put(
    world: World,
    name: str,
    files: tuple[Path | None, Path | None],
    *,
    acme: bool,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Any], list[Notice]]:
    """Make or change one, from files with certificate and key, or by ACME; Trouble."""
    cert, key = (None if file is None else read(file) for file in files)
    sent = None if cert is None and key is None else Sent(cert or "", key)
    given = Given(name, sent, acme, names=None if names is None else tuple(names))
    try:
        _, notices = await certificates.put(owner(world), given)
    except Refused as refusal:
        raise Trouble(refusal.message) from None
    return await one(world, name), notices


async def one(world: World, name: str) -> dict[str, Any]:
    """The certificate of this server; Trouble where there is none."""
    return _plain(await _named(world, name))


async def _named(world: World, name: str) -> Picked:
    row = await certificates.named(owner(world), name)
    if row is None:
        raise Trouble(f"there is no certificate for {name}: `merganser certificate list` shows all")
    return row


async def renew(world: World, name: str) -> dict[str, Any]:
    """Have it made anew by ACME, which a running server does; Trouble."""
    row = await _named(world, name)
    try:
        await certificates.renew(owner(world), [row.id])
    except Refused as refusal:
        raise Trouble(refusal.message) from None
    return await one(world, name)


async def remove(world: World, name: str, reason: str | None = None) -> bool:
    """Remove it, revoked before for a reason; whether it was. Trouble where there is none."""
    row = await _named(world, name)
    try:
        return bool(await certificates.remove(owner(world), [row.id], _reason(reason)))
    except Refused as refusal:
        raise Trouble(refusal.message) from None


def _reason(text: str | None) -> Reason | None:
    if text is None:
        return None
    spelt = {one.lower().replace("_", "-"): one for one in Reason}
    if text not in spelt:
        raise Trouble(f"--revoke is one of {', '.join(spelt)}", code=MISUSED)
    return spelt[text]

"""List, set, renew and delete certificates for the command line."""

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


async def listed(environment: World) -> list[dict[str, Any]]:
    """Load all certificates by server name, as JSON values."""
    statement = select(*picked(Certificate, COLUMNS)).order_by(col(Certificate.server_name))
    return [_plain(row) for row in await environment.database.read(statement)]


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
    """Read a text file. Raises CommandError if it can't be read or is not text."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "it is no text"
        raise Trouble(f"cannot read {file}: {reason}") from None


async def put(
    environment: World,
    name: str,
    files: tuple[Path | None, Path | None],
    *,
    acme: bool,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Any], list[Notice]]:
    """Set the certificate of a server, from PEM files or by ACME.

    Returns it as JSON values, with notices for the operator. Raises CommandError if it is invalid.
    """
    cert, key = (None if file is None else read(file) for file in files)
    sent = None if cert is None and key is None else Sent(cert or "", key)
    given = Given(name, sent, acme, names=None if names is None else tuple(names))
    try:
        _, notices = await certificates.put(owner(environment), given)
    except Refused as refusal:
        raise Trouble(refusal.message) from None
    return await one(environment, name), notices


async def one(environment: World, name: str) -> dict[str, Any]:
    """Load the certificate of a server as JSON values. Raises CommandError if there is none."""
    return _plain(await _named(environment, name))


async def _named(environment: World, name: str) -> Picked:
    row = await certificates.named(owner(environment), name)
    if row is None:
        raise Trouble(f"there is no certificate for {name}: `merganser certificate list` shows all")
    return row


async def renew(environment: World, name: str) -> dict[str, Any]:
    """Request a renewal by ACME, which a running server does. Raises CommandError."""
    row = await _named(environment, name)
    try:
        await certificates.renew(owner(environment), [row.id])
    except Refused as refusal:
        raise Trouble(refusal.message) from None
    return await one(environment, name)


async def remove(environment: World, name: str, reason: str | None = None) -> bool:
    """Delete the certificate of a server. With a reason it is revoked first.

    Returns True if it was revoked. Raises CommandError if there is none, or it can't be revoked.
    """
    row = await _named(environment, name)
    try:
        return bool(await certificates.remove(owner(environment), [row.id], _reason(reason)))
    except Refused as refusal:
        raise Trouble(refusal.message) from None


def _reason(text: str | None) -> Reason | None:
    """Parse the revocation reason of `--revoke`. Raises CommandError if it is unknown."""
    if text is None:
        return None
    spelt = {one.lower().replace("_", "-"): one for one in Reason}
    if text not in spelt:
        raise Trouble(f"--revoke is one of {', '.join(spelt)}", code=MISUSED)
    return spelt[text]

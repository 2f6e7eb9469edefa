"""Certificates of the platform, read and changed by an ADMIN. Private keys are never returned."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, exists, false, func, insert, or_, select, true
from sqlalchemy import update as changing
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.tls import pem_certificates
from mail.tls.acme_client import Reason
from mail.tls.pem_certificates import Fitting, Sent, covers, wildcard
from mail.tls.sni_certificates import rank
from models.certificates import Certificate, CertificateName
from models.errors import Conflict, Invalid, LimitReached, Unavailable, all_found
from models.events.journal import PLATFORM, ChangeKind
from models.events.wakeups import CERTIFICATES
from models.runtime.environment import World, ring
from models.runtime.secret_box import Sealed
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role
from resolvers import pagination
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.certificates import acme_revocation
from resolvers.context import Context
from resolvers.pagination import Scan, by_keys

OLDEST = "certificates"
MOST = 2000  # each listening process holds all of them
LONGEST = 255  # characters
WORDS = 500
EARLY = timedelta(days=30)  # before the certificate expires
SHARE = 3  # for one valid less than 90 days this part of its lifetime
NOTHING_SENT = "send a certificate, or have it made: acme"
DISAGREED = "waits: the terms of the authority are not agreed to (acme.termsAgreed)"
TURN = "waits for its turn"


@dataclass(frozen=True, slots=True)
class Given:
    """New values of the certificate of a server. Without `sent` the stored one stays."""

    server_name: str
    sent: Sent | None = None
    acme: bool = False
    description: str | None = None
    described: bool = False  # else the description stays
    names: tuple[str, ...] | None = (
        None  # other names in the ACME certificate; None leaves them unchanged
    )


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning about a stored certificate: code, message and input field."""

    code: str
    message: str
    field: str = "cert"


def place_of(certificate_id: int) -> str:
    """Return the context that the secret box encrypts a certificate's private key for."""
    return f"certificate:{certificate_id}"


def _visible(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def _rows(ctx: Context, names: Collection[str] | None = None) -> Select[*tuple[Any, ...]]:
    columns = None if names is None else {"id", "created_at", *names}
    return select(*picked(Certificate, columns)).where(_visible(ctx))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load certificates by id, in the given order. None for ids that the viewer can't see."""
    return await by_keys(ctx, _rows(ctx), col(Certificate.id), ids)


async def named(ctx: Context, name: str) -> Picked | None:
    """Return the certificate stored for exactly this server name, or None."""
    try:
        exact = pem_certificates.server_name(name)
    except Invalid:
        return None
    rows = await ctx.read(_rows(ctx).where(col(Certificate.server_name) == exact))
    return next(iter(rows), None)


@dataclass(frozen=True, slots=True)
class Where:
    """A part of the server name or, with `alt_names`, of any name in the certificate."""

    query: str | None = None
    alt_names: bool = False

    def term(self) -> ColumnElement[bool]:
        """Return the WHERE clause. Raises InvalidInput if the query is too long."""
        if not self.query:
            return true()
        if len(self.query) > LONGEST or not self.query.isprintable():
            text = f"at most {LONGEST} printable characters"
            raise Invalid(text, constraint="length", path=["query"])
        part = self.query.strip().lower()
        term = col(Certificate.server_name).contains(part, autoescape=True)
        if not self.alt_names:
            return term
        name = col(CertificateName.name)
        mine = col(CertificateName.certificate_id) == col(Certificate.id)
        fits = or_(name.contains(part, autoescape=True), name == wildcard(part))
        return or_(term, exists().where(mine, fits))


async def page(ctx: Context, where: Where, ask: Ask, columns: Collection[str]) -> Page[Picked]:
    """Read a page of certificates, the oldest first."""
    place = (col(Certificate.created_at), col(Certificate.id))
    rows = _rows(ctx, columns).where(where.term())
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, where: Where) -> int:
    """Count the certificates that meet the conditions."""
    many = select(func.count().label("many")).select_from(Certificate)
    (row,) = await ctx.read(many.where(_visible(ctx), where.term()))
    return int(row.many)


async def put(ctx: Context, given: Given) -> tuple[int, list[Notice]]:
    """Store or change the certificate of a server; return its id and warnings.

    Raises InvalidInput with field and rule, Conflict if another transaction changed it,
    LimitReached, or ServiceUnavailable if the stored key can't be decrypted.
    """
    given = _checked(given)
    name = given.server_name
    before = await named(ctx, name)
    made = None
    if given.sent is not None:
        old = _old_key(ctx.world, before) if given.sent.key is None else None
        made = await asyncio.to_thread(pem_certificates.fitting, given.sent, old)
    async with ctx.write(PLATFORM) as session:
        row = await named(ctx, name)
        if (row and row.version) != (before and before.version):
            raise Conflict("it was changed meanwhile: send it once more", path=["serverName"])
        key = row.id if row else await _room(ctx)
        values = _values(ctx.world, given, row, made) | {"server_name": name}
        if made:
            values |= stored(ctx.world, key, made, row.version if row else 0)
            values["acme_directory"] = None
        connection = await session.connection()
        if row:
            this = changing(Certificate).where(col(Certificate.id) == key)
            await connection.execute(this.values(**values))
        else:
            values |= {"id": key, "created_at": ctx.world.now()}
            await connection.execute(insert(Certificate).values(**_whole(values)))
        if made:
            await named_in(session, key, made.names)
        (now,) = await _seen(ctx, [key])
        await told(ctx, session, [key])
        await admin_log.note(ctx, session, _done("certificateSet", row, now))
    return key, _notices(ctx.world, name, made)


def _checked(given: Given) -> Given:
    """Return the values with normalized names. Raises InvalidInput if one is not allowed."""
    own = pem_certificates.public_name if given.acme else pem_certificates.server_name
    name = own(given.server_name)
    said = given.description or ""
    if len(said) > WORDS or not said.isprintable():
        text = f"at most {WORDS} printable characters"
        raise Invalid(text, constraint="length", path=["description"])
    if given.names and not given.acme:
        text = "only what ACME makes is given names"
        raise Invalid(text, constraint="acme", path=["acmeNames"])
    names = given.names and tuple(pem_certificates.other_names(name, given.names))
    return replace(given, server_name=name, names=names)


async def _room(ctx: Context) -> int:
    """Return the id of a new certificate. Raises LimitReached if there are too many."""
    (row,) = await ctx.read(select(func.count().label("many")).select_from(Certificate))
    if row.many >= MOST:
        text = f"at most {MOST} certificates"
        raise LimitReached(text, limit=MOST, used=row.many, path=["serverName"])
    return ctx.world.key()


def _old_key(world: World, row: Picked | None) -> str | None:
    """Return the stored private key, or None.

    Raises ServiceUnavailable if it can't be decrypted.
    """
    return opened(world, row) if row and row.private_key else None


def opened(world: World, row: Any) -> str:
    """Return the private key of a stored certificate in PEM.

    Raises ServiceUnavailable if the secret box has not the key to decrypt it.
    """
    try:
        return world.vault.open(row.private_key, place_of(row.id))
    except Sealed:
        raise Unavailable("its key cannot be opened: send one", component="vault") from None


def _values(world: World, given: Given, row: Picked | None, made: Fitting | None) -> dict[str, Any]:
    """Return the columns that change, without certificate and key.

    Raises InvalidInput if there is no certificate and ACME is off.
    """
    end: Any = made or (row if row and row.chain else None)
    if not end and not given.acme:
        raise Invalid(NOTHING_SENT, constraint="required", path=["cert"])
    names = _names(given, row)
    values: dict[str, Any] = {
        "acme": given.acme,
        "acme_names": names,
        "updated_at": world.now(),
    }
    if given.described:
        values["description"] = given.description or None
    if row and end is row and row.acme and given.acme and names == row.acme_names:
        return values  # ACME continues unchanged
    values |= {
        "acme_state": None,
        "acme_next_at": None,
        "acme_renew_at": None,
        "acme_failures": 0,
        "lease": None,  # a worker that has leased it stores nothing
        "holder": None,
    }
    inside = made.names if made else row.alt_names if row else ()
    if given.acme and end and all(covers(inside, name) for name in names):
        values |= resting(end.not_before, end.not_after)
    elif given.acme:
        agreed = world.options.acme_terms_agreed
        values |= {"acme_state": TURN if agreed else DISAGREED, "acme_next_at": world.now()}
    return values


def _names(given: Given, row: Picked | None) -> list[str]:
    """Return the names that ACME is to add to the server name."""
    if given.acme and given.names is None and row:
        return list(row.acme_names)
    return list(given.names or ())


def resting(begins: datetime, ends: datetime) -> dict[str, Any]:
    """Return the columns of a valid ACME certificate: state and renewal time."""
    due = ends - min(EARLY, (ends - begins) / SHARE)
    state = f"valid, renewed from {due:%Y-%m-%d}"
    return {"acme_state": state, "acme_next_at": due, "acme_renew_at": due}


def stored(world: World, key: int, made: Fitting, version: int) -> dict[str, Any]:
    """Return the columns of a certificate chain and its encrypted private key."""
    return {
        "alt_names": list(made.names),
        "chain": made.chain,
        "private_key": world.vault.seal(made.key, place_of(key)),
        "version": version + 1,
        "sha1": made.sha1,
        "sha256": made.sha256,
        "spki": made.spki,
        "issuer": made.issuer,
        "not_before": made.not_before,
        "not_after": made.not_after,
    }


def _whole(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a new row with the defaults of columns that are not given."""
    return {"alt_names": [], "version": 0, **values}


async def named_in(session: AsyncSession, key: int, names: Sequence[str]) -> None:
    """Replace the searchable names of a certificate."""
    connection = await session.connection()
    mine = col(CertificateName.certificate_id) == key
    await connection.execute(delete(CertificateName).where(mine))
    rows = [{"certificate_id": key, "name": name} for name in names]
    if rows:
        await connection.execute(insert(CertificateName), rows)


async def told(ctx: Context, session: AsyncSession, ids: Sequence[int]) -> None:
    """Record changed certificates, and wake the listeners and the ACME worker."""
    await ctx.record(session, PLATFORM, ChangeKind.CERTIFICATE_CHANGED, list(ids))
    ring(session, CERTIFICATES)


def _notices(world: World, name: str, made: Fitting | None) -> list[Notice]:
    if made is None:
        return []
    now, found = world.now(), []
    if not covers(made.names, name):
        text = f"{name} does not stand in the certificate: most clients will refuse it"
        found.append(Notice("NAME_NOT_IN_CERTIFICATE", text, "serverName"))
    if made.not_after <= now:
        found.append(Notice("CERTIFICATE_EXPIRED", f"it ended on {made.not_after:%Y-%m-%d}"))
    if made.not_before > now:
        text = f"it begins on {made.not_before:%Y-%m-%d}"
        found.append(Notice("CERTIFICATE_NOT_YET_VALID", text))
    if not made.for_servers:
        found.append(Notice("NOT_FOR_SERVERS", "it says that it is not for servers"))
    if made.left:
        text = f"{made.left} certificates are no part of its chain, and were left out"
        found.append(Notice("CERTIFICATES_LEFT_OUT", text, "ca"))
    return found


async def remove(ctx: Context, ids: Sequence[int], reason: Reason | None = None) -> list[int]:
    """Delete certificates, all or none; return the ids of revoked ones. Connections stay open.

    With a reason they are revoked first. Nothing is deleted if the authority does not revoke
    one, or if a certificate was replaced during the revocation. Raises NotFound, Conflict,
    InvalidInput or ServiceUnavailable.
    """
    revoked: list[Picked] = []
    if reason:
        revoked = acme_revocation.revocable(ctx, await _seen(ctx, ids))
    if reason and not ctx.trial:
        await acme_revocation.revoke(ctx, revoked, reason)
    ended = {row.id: row.version for row in revoked}
    async with ctx.write(PLATFORM) as session:
        rows = await _seen(ctx, ids)
        for nth, row in enumerate(rows):
            if ended.get(row.id, row.version) != row.version:
                text = "the one before was revoked, and another has come: send it once more"
                raise Conflict(text, path=["ids"], index=nth)
        connection = await session.connection()
        await connection.execute(delete(Certificate).where(col(Certificate.id).in_(ids)))
        await told(ctx, session, [row.id for row in rows])
        after = {row.id: {"revoked": reason} for row in revoked}
        done = (
            replace(_done("certificateDelete", row, None), after=after.get(row.id)) for row in rows
        )
        await admin_log.note(ctx, session, *done)
    return list(ended)


async def renew(ctx: Context, ids: Sequence[int]) -> None:
    """Order these certificates again now, all or none, whatever earlier orders failed with.

    Raises NotFound, or Conflict if one is not managed by ACME.
    """
    async with ctx.write(PLATFORM) as session:
        rows = await _seen(ctx, ids)
        for nth, row in enumerate(rows):
            if not row.acme:
                text = "it is not renewed by ACME: send another by certificateSet"
                raise Conflict(text, path=["ids"], index=nth)
        agreed = ctx.world.options.acme_terms_agreed
        state = {"acme_state": TURN if agreed else DISAGREED, "acme_next_at": ctx.world.now()}
        values = {**state, "acme_renew_at": None, "acme_failures": 0, "updated_at": ctx.world.now()}
        these = changing(Certificate).where(col(Certificate.id).in_(ids))
        await (await session.connection()).execute(these.values(**values))
        await told(ctx, session, [row.id for row in rows])
        await admin_log.note(
            ctx,
            session,
            *(
                Done("certificateRenew", "Certificate", r.id, after={"serverName": r.server_name})
                for r in rows
            ),
        )


async def _seen(ctx: Context, ids: Sequence[int]) -> list[Picked]:
    """Load certificates, each once.

    Raises NotFound if one is not visible and InvalidInput if none is given.
    """
    rows = {row.id: row for row in await by_ids(ctx, list(ids)) if row}
    all_found(ids, rows)
    if not rows:
        raise Invalid("name at least one", constraint="required", path=["ids"])
    return list(rows.values())


def _facts(row: Picked | None) -> dict[str, Any]:
    """Return the values of a certificate for the admin log."""
    if row is None:
        return {}
    ends = row.not_after and row.not_after.isoformat()
    return {
        "serverName": row.server_name,
        "description": row.description,
        "acme": row.acme,
        "acmeNames": row.acme_names,
        "fingerprintSha256": row.sha256,
        "expires": ends,
    }


def _done(mutation: str, before: Picked | None, after: Picked | None) -> Done:
    one = after or before
    old, new, key = _facts(before), _facts(after), one.id if one else None
    if before and after:
        names = [name for name in new if old[name] != new[name]]
        old, new = ({name: facts[name] for name in names} for facts in (old, new))
    return Done(mutation, "Certificate", key, None, old or None, new or None)


async def spki_served(world: World, host: str) -> str | None:
    """Return the SHA-256 of the public key that TLS clients of this host see; None without TLS.

    Chosen as in `mail/tls/sni_certificates.py`: stored for the host, or with its name in it,
    else the certificate file.
    """
    inside = select(col(CertificateName.certificate_id)).where(
        col(CertificateName.name).in_([host, wildcard(host)])
    )
    asked = select(*picked(Certificate, ("server_name", "spki", "not_before", "not_after"))).where(
        col(Certificate.chain).is_not(None)
    )
    fits = or_(col(Certificate.server_name) == host, col(Certificate.id).in_(inside))
    now = world.now()

    def best(row: Picked) -> Any:
        return rank(row, host, now)

    if rows := await world.database.read(asked.where(fits)):
        return str(max(rows, key=best).spki)
    if (file := world.options.tls_cert) and (found := await asyncio.to_thread(_of_file, file)):
        return found
    rows = await world.database.read(asked)
    return str(max(rows, key=best).spki) if rows else None


def _of_file(file: Path) -> str | None:
    try:
        return pem_certificates.spki_of(file.read_text(errors="replace"))
    except OSError:
        return None

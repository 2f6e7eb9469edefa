"""Operations on certificates: of an ADMIN, for the whole platform. Keys never come out again."""

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
MOST = 2000  # of the platform: each process that listens holds all of them
LONGEST = 255  # characters of what is looked for
WORDS = 500  # characters of a description
EARLY = timedelta(days=30)  # before its end one is renewed, or
SHARE = 3  # where it lives less than 90 days, when this part of its life is left
NOTHING_SENT = "send a certificate, or have it made: acme"
DISAGREED = "waits: the terms of the authority are not agreed to (acme.termsAgreed)"
TURN = "waits for its turn"


@dataclass(frozen=True, slots=True)
class Given:
    """What is said of a certificate; without `sent` the stored one stays."""

    server_name: str
    sent: Sent | None = None
    acme: bool = False
    description: str | None = None
    described: bool = False  # or the description stays
    names: tuple[str, ...] | None = None  # beside its own that ACME puts into it; None: they stay


@dataclass(frozen=True, slots=True)
class Notice:
    """It was stored, but: a code, words, and the field."""

    code: str
    message: str
    field: str = "cert"


def place_of(certificate_id: int) -> str:
    """What the vault seals the key of a certificate for."""
    return f"certificate:{certificate_id}"


def _visible(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def _rows(ctx: Context, names: Collection[str] | None = None) -> Select[*tuple[Any, ...]]:
    columns = None if names is None else {"id", "created_at", *names}
    return select(*picked(Certificate, columns)).where(_visible(ctx))


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The certificates with these ids, in this order; None where the viewer sees none."""
    return await by_keys(ctx, _rows(ctx), col(Certificate.id), ids)


async def named(ctx: Context, name: str) -> Picked | None:
    """The certificate that is stored for exactly this server; None where there is none."""
    try:
        exact = pem_certificates.server_name(name)
    except Invalid:
        return None
    rows = await ctx.read(_rows(ctx).where(col(Certificate.server_name) == exact))
    return next(iter(rows), None)


@dataclass(frozen=True, slots=True)
class Where:
    """Which to list: part of the server's name or, with `alt_names`, of any name in it."""

    query: str | None = None
    alt_names: bool = False

    def term(self) -> ColumnElement[bool]:
        """The WHERE clause. Invalid where it is too long."""
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
    """A page of certificates, in the order they were made."""
    place = (col(Certificate.created_at), col(Certificate.id))
    rows = _rows(ctx, columns).where(where.term())
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, where: Where) -> int:
    """How many such a list has."""
    many = select(func.count().label("many")).select_from(Certificate)
    (row,) = await ctx.read(many.where(_visible(ctx), where.term()))
    return int(row.many)


async def put(ctx: Context, given: Given) -> tuple[int, list[Notice]]:
    """Make the certificate of a server, or change it; its key, and what is worth knowing.

    Invalid, naming field and rule, for what cannot be served.
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
    """The same with its names as they are stored; Invalid where something is wrong."""
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
    """The key of a new one; LimitReached where there are enough."""
    (row,) = await ctx.read(select(func.count().label("many")).select_from(Certificate))
    if row.many >= MOST:
        text = f"at most {MOST} certificates"
        raise LimitReached(text, limit=MOST, used=row.many, path=["serverName"])
    return ctx.world.key()


def _old_key(world: World, row: Picked | None) -> str | None:
    """The stored key; Unavailable where the vault has lost it."""
    return opened(world, row) if row and row.private_key else None


def opened(world: World, row: Any) -> str:
    """The key of a stored certificate, PEM; Unavailable where the vault has not its key."""
    try:
        return world.vault.open(row.private_key, place_of(row.id))
    except Sealed:
        raise Unavailable("its key cannot be opened: send one", component="vault") from None


def _values(world: World, given: Given, row: Picked | None, made: Fitting | None) -> dict[str, Any]:
    """What changes besides key and chain."""
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
        return values  # ACME goes on as before
    values |= {
        "acme_state": None,
        "acme_next_at": None,
        "acme_renew_at": None,
        "acme_failures": 0,
        "lease": None,  # whoever has it finds it lost, and stores nothing
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
    """The names that ACME is to put in from now on, beside its own."""
    if given.acme and given.names is None and row:
        return list(row.acme_names)
    return list(given.names or ())


def resting(begins: datetime, ends: datetime) -> dict[str, Any]:
    """State and next step of what ACME has brought, or takes over."""
    due = ends - min(EARLY, (ends - begins) / SHARE)
    state = f"valid, renewed from {due:%Y-%m-%d}"
    return {"acme_state": state, "acme_next_at": due, "acme_renew_at": due}


def stored(world: World, key: int, made: Fitting, version: int) -> dict[str, Any]:
    """Columns of a key and its chain."""
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
    """The values of a new row, with the defaults of what is not said."""
    return {"alt_names": [], "version": 0, **values}


async def named_in(session: AsyncSession, key: int, names: Sequence[str]) -> None:
    """Keep the names in a certificate, to be looked for."""
    connection = await session.connection()
    mine = col(CertificateName.certificate_id) == key
    await connection.execute(delete(CertificateName).where(mine))
    rows = [{"certificate_id": key, "name": name} for name in names]
    if rows:
        await connection.execute(insert(CertificateName), rows)


async def told(ctx: Context, session: AsyncSession, ids: Sequence[int]) -> None:
    """Let listeners, followers and the worker look at these again."""
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
    """Remove these, all or none. Whoever is connected stays so.

    With a reason their authorities revoke them before; the keys of those. Where one does not, or
    another certificate has come meanwhile, none is removed.
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
    """Have these made anew at once, all or none, whatever they failed by before.

    Conflict where one is not renewed by itself.
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
    """These certificates, each once; NotFound where the viewer sees one not."""
    rows = {row.id: row for row in await by_ids(ctx, list(ids)) if row}
    all_found(ids, rows)
    if not rows:
        raise Invalid("name at least one", constraint="required", path=["ids"])
    return list(rows.values())


def _facts(row: Picked | None) -> dict[str, Any]:
    """What the log of administrators says of a certificate."""
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
    """SHA-256 of the public key that is shown to whoever asks for this host; None without TLS.

    As `mail/tls/sni_certificates.py` chooses: stored for it, or with its name in it, else that of
    the file.
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

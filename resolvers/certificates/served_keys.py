"""Find the public key of the certificate that TLS clients of a host see."""

import asyncio
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select
from sqlmodel import col

from mail.tls import pem_certificates
from mail.tls.pem_certificates import (
    wildcard_name,
)
from mail.tls.sni_certificates import certificate_rank
from models.certificates import Certificate, CertificateName
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns


async def find_served_spki_sha256(environment: Environment, host_name: str) -> str | None:
    """Return the SHA-256 (hex) of the public key that TLS clients of this host see.

    The certificate is selected as in `mail/tls/sni_certificates.py`: one that is stored for the
    host or contains its name, else the certificate file, else any stored one. None if there is no
    certificate.
    """
    ids_with_name = select(col(CertificateName.certificate_id)).where(
        col(CertificateName.name).in_([host_name, wildcard_name(host_name)])
    )
    statement = select(
        *select_columns(Certificate, ("server_name", "spki", "not_before", "not_after"))
    ).where(col(Certificate.chain).is_not(None))
    matches_host = or_(
        col(Certificate.server_name) == host_name, col(Certificate.id).in_(ids_with_name)
    )
    now = environment.now()

    def rank_for_host(row: ColumnRow) -> Any:
        """Return the sort key of a certificate for the host; a higher one is better."""
        return certificate_rank(row, host_name, now)

    if rows := await environment.database.read(statement.where(matches_host)):
        return str(max(rows, key=rank_for_host).spki)
    if (certificate_file := environment.options.tls_cert) and (
        spki_of_file := await asyncio.to_thread(_spki_of_file, certificate_file)
    ):
        return spki_of_file
    rows = await environment.database.read(statement)
    return str(max(rows, key=rank_for_host).spki) if rows else None


def _spki_of_file(certificate_file: Path) -> str | None:
    try:
        return pem_certificates.first_spki_sha256(certificate_file.read_text(errors="replace"))
    except OSError:
        return None

"""Load stored certificates into the listeners of this process when they change."""

import logging

from sqlalchemy import select
from sqlmodel import col

from mail.tls.server_tls import CertificateSource
from mail.tls.sni_certificates import SniCertificates, StoredCertificate
from models.certificates import Certificate
from models.events.wakeups import CERTIFICATES, wait_for_any_event_or_timeout
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from resolvers.certificates.stored_certificates import encryption_context

log = logging.getLogger(__name__)

POLL_SECONDS = 15.0  # between checks for changes whose wake-up was lost
CERTIFICATES_PER_READ = 100
SELECT_VERSIONS = select(*select_columns(Certificate, ("id", "version"))).where(
    col(Certificate.chain).is_not(None)
)
SELECT_CERTIFICATES = select(
    *select_columns(
        Certificate,
        (
            "id", "version", "server_name", "alt_names", "not_before", "not_after", "chain",
            "private_key",
        ),
    )
)  # fmt: skip


async def is_any_certificate_stored(environment: Environment) -> bool:
    """True if any certificate is stored or ordered."""
    return bool(await environment.database.read(select(col(Certificate.id)).limit(1)))


def new_empty_keyring(
    environment: Environment, file_certificates: CertificateSource | None = None
) -> SniCertificates:
    """Return an empty key ring that decrypts private keys with the secret box."""

    def decrypt_private_key(certificate: StoredCertificate) -> str:
        return environment.secret_box.decrypt(
            certificate.sealed_key, encryption_context(certificate.id)
        )

    return SniCertificates(
        decrypt_private_key,
        environment.now,
        own_name=environment.options.hostname,
        certificate_file=file_certificates,
    )


async def update_keyring_from_database(
    environment: Environment, keyring_to_update: SniCertificates
) -> None:
    """Update the key ring to the stored certificates, of which only changed ones are read.

    The certificates are not checked here.
    """
    stored_versions = {
        row.id: row.version for row in await environment.database.read(SELECT_VERSIONS)
    }
    held_versions = keyring_to_update.version_by_id
    if stored_versions == held_versions:
        return
    changed_ids = [
        certificate_id
        for certificate_id, version in stored_versions.items()
        if held_versions.get(certificate_id) != version
    ]
    loaded: list[StoredCertificate] = []
    for start in range(0, len(changed_ids), CERTIFICATES_PER_READ):
        statement = SELECT_CERTIFICATES.where(
            col(Certificate.id).in_(changed_ids[start : start + CERTIFICATES_PER_READ])
        )
        loaded += [
            _certificate_from_row(row)
            for row in await environment.database.read(statement)
            if row.chain
        ]
    keyring_to_update.replace_certificates(
        [key for key in held_versions if key not in stored_versions], loaded
    )
    log.info("Certificates reloaded", extra={"held": len(stored_versions), "read": len(loaded)})


def _certificate_from_row(row: ColumnRow) -> StoredCertificate:
    return StoredCertificate(
        row.id,
        row.version,
        row.server_name,
        tuple(row.alt_names),
        row.not_before,
        row.not_after,
        row.chain,
        row.private_key,
    )


async def keep_keyring_up_to_date_forever(
    environment: Environment, keyring_to_update: SniCertificates
) -> None:
    """Keep the key ring up to date until cancelled.

    A wake-up triggers it at once; changes are also checked every POLL_SECONDS.
    """
    with environment.wakeups.follow([CERTIFICATES]) as wakeup:
        while True:
            wakeup.clear()  # before reading: a later change sets it again
            try:
                await update_keyring_from_database(environment, keyring_to_update)
            except Exception:  # keep running: the next attempt can succeed
                log.exception("Could not read the certificates")
            await wait_for_any_event_or_timeout([wakeup], POLL_SECONDS)

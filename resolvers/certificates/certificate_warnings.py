"""Warnings about a certificate that is stored although clients may refuse it."""

from dataclasses import dataclass

from mail.tls.pem_certificates import (
    CertificateWithKey,
    covers_name,
)
from models.runtime.environment import Environment
from models.warning_codes import WarningCode


@dataclass(frozen=True, slots=True)
class CertificateWarning:
    """A warning about a stored certificate: code, message and input field."""

    code: WarningCode
    message: str
    field: str = "cert"


def certificate_warnings(
    environment: Environment, server_name: str, checked_certificate: CertificateWithKey | None
) -> list[CertificateWarning]:
    """Return the warnings about a certificate that is being stored; none if there is none."""
    if checked_certificate is None:
        return []
    now, warnings = environment.now(), []
    if not covers_name(checked_certificate.dns_names, server_name):
        message = f"The certificate does not contain {server_name}: most clients reject it."
        warnings.append(
            CertificateWarning(WarningCode.NAME_NOT_IN_CERTIFICATE, message, "serverName")
        )
    if checked_certificate.not_after <= now:
        warnings.append(
            CertificateWarning(
                WarningCode.CERTIFICATE_EXPIRED,
                f"The certificate expired on {checked_certificate.not_after:%Y-%m-%d}.",
            )
        )
    if checked_certificate.not_before > now:
        message = f"The certificate is not valid before {checked_certificate.not_before:%Y-%m-%d}."
        warnings.append(CertificateWarning(WarningCode.CERTIFICATE_NOT_YET_VALID, message))
    if not checked_certificate.is_for_servers:
        warnings.append(
            CertificateWarning(
                WarningCode.NOT_FOR_SERVERS,
                "The certificate is not for servers: its extended key usage excludes "
                "server authentication.",
            )
        )
    if checked_certificate.unused_count:
        message = (
            f"{checked_certificate.unused_count} certificates are not part of the "
            "chain. They were omitted."
        )
        warnings.append(CertificateWarning(WarningCode.CERTIFICATES_LEFT_OUT, message, "ca"))
    return warnings

"""The SMTP listeners: for mail from other servers, and for submission."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mail.smtp.connection_limits import BYTE_BUDGET, SessionLimits
from mail.smtp.lmtp import LmtpListener
from mail.smtp.mx_server import MxListener, MxRules
from mail.smtp.smtp_server import SmtpListener, SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener
from mail.spam.greylist import Greylist
from mail.tls.server_tls import CertificateFiles
from mail.tls.sni_certificates import SniCertificates
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server import sockets
from merganser.server.components.listener_component import ListenerDefinition
from merganser.server.processes.process_roles import ProcessRole
from merganser.settings.settings import PREFIX, Settings
from models.runtime.environment import Environment
from resolvers.certificates import certificate_reload
from resolvers.submission.smtp_submission import SmtpSubmissionService

MAX_COMMANDS = 2000  # per connection
MAX_UNKNOWN_RECIPIENTS = 50  # per connection
COMPONENT_NAMES = {  # by listener name
    "LMTP": "lmtp",
    "SMTP": "smtp",
    "SUBMISSION": "submission",
    "SUBMISSION_TLS": "submissionTls",
}


class SharedListenerOptions(NamedTuple):
    """The options that all SMTP listeners of a process share."""

    certificates: SniCertificates
    spool_budget: int  # bytes of messages that are being received


def load_certificate_files(settings: Settings) -> CertificateFiles | None:
    """Load the certificate of MERGANSER_TLS_CERT; None if it is not set.

    Raises CommandError if the files can't be read.
    """
    if settings.tls_cert is None:
        return None
    try:
        return CertificateFiles(settings.tls_cert, settings.tls_key)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        text = f"{PREFIX}TLS_CERT cannot be used: {settings.tls_cert}: {reason}."
        raise CommandError(text, exit_code=EXIT_USAGE) from problem


async def require_certificate_for_submission(settings: Settings, environment: Environment) -> None:
    """Raise CommandError if a submission listener is set and no certificate is set or stored."""
    if settings.tls_cert is not None or await certificate_reload.is_any_certificate_stored(
        environment
    ):
        return
    for name in ("SUBMISSION", "SUBMISSION_TLS"):
        if name in sockets.listen_addresses(settings):
            text = (
                f"{PREFIX}{name}_LISTEN requires a certificate: set {PREFIX}TLS_CERT, or "
                "store one with `merganser certificate set`."
            )
            raise CommandError(text, exit_code=EXIT_USAGE)


async def _load_and_follow_certificates(
    settings: Settings, environment: Environment, stack: AsyncExitStack
) -> SniCertificates:
    """Load all certificates, and follow their changes until the stack closes."""

    def use_certificate_files(chain: Path | None, key: Path | None) -> None:
        certificates.use_certificate_file(CertificateFiles(chain, key) if chain else None)

    certificates = certificate_reload.new_empty_keyring(
        environment, load_certificate_files(settings)
    )
    await certificate_reload.update_keyring_from_database(environment, certificates)
    follow_task = asyncio.create_task(
        certificate_reload.keep_keyring_up_to_date_forever(environment, certificates)
    )
    stack.callback(follow_task.cancel)
    environment.server_control.use_certificate_files = use_certificate_files
    return certificates


async def load_certificates_and_define_listeners(
    settings: Settings, environment: Environment, process_role: ProcessRole, stack: AsyncExitStack
) -> Iterator[ListenerDefinition]:
    """Return the SMTP listeners that are set. The iterator opens the socket of each.

    The certificates are followed until the stack closes. Raises CommandError if a certificate is
    missing; the iterator raises it if an address can't be bound.
    """
    await require_certificate_for_submission(settings, environment)
    common = SharedListenerOptions(
        await _load_and_follow_certificates(settings, environment, stack),
        BYTE_BUDGET // process_role.listening_process_count,
    )
    return (
        ListenerDefinition(
            COMPONENT_NAMES[name],
            address=address,
            bound_sockets=process_role.smtp_sockets.get(name)
            or sockets.open_listening_sockets(name, address),
            create_listener=partial(_create_listener, name, settings, environment, common),
            finish_timeout=settings.smtp_message_timeout.total_seconds(),
        )
        for name, address in sockets.listen_addresses(settings).items()
        if name not in ("HTTP", "LMTP", "ACME_HTTP")
    )


def open_and_define_lmtp_listener(
    settings: Settings, environment: Environment, process_role: ProcessRole
) -> ListenerDefinition:
    """Return the LMTP listener with its open socket.

    Raises CommandError if its address can't be bound.
    """
    return ListenerDefinition(
        COMPONENT_NAMES["LMTP"],
        address=settings.lmtp_listen,
        bound_sockets=process_role.lmtp_sockets
        or sockets.open_listening_sockets("LMTP", settings.lmtp_listen),
        create_listener=partial(
            LmtpListener,
            environment,
            settings.data / "spool" / "lmtp",
            process_count=process_role.listening_process_count,
        ),
        finish_timeout=settings.smtp_message_timeout.total_seconds(),
    )


def _create_listener(
    listener_name: str,
    settings: Settings,
    environment: Environment,
    shared_options: SharedListenerOptions,
) -> SmtpListener:
    limits = SessionLimits(
        byte_budget=shared_options.spool_budget,
        disk_reserve=settings.disk_reserve,
        max_connections=settings.smtp_connections,
        max_recipients=settings.smtp_max_recipients,
        max_commands=MAX_COMMANDS,
        max_unknown_recipients=MAX_UNKNOWN_RECIPIENTS,
        command_timeout=settings.smtp_idle_timeout.total_seconds(),
        message_timeout=settings.smtp_message_timeout.total_seconds(),
        session_timeout=settings.smtp_connection_lifetime.total_seconds(),
    )
    terms = SmtpListenerConfig(
        limits,
        settings.smtp_connections_per_client,
        shared_options.certificates,
        implicit_tls=listener_name == "SUBMISSION_TLS",
        proxy_networks=settings.smtp_trusted_proxies,
    )
    spool = settings.data / "spool" / listener_name.lower()
    if listener_name != "SMTP":
        return SubmissionListener(environment, spool, terms, SmtpSubmissionService(environment))
    greylist = None
    if delay := settings.greylist_delay:
        greylist = Greylist(
            environment, delay, settings.greylist_retention, settings.greylist_exempt_networks
        )
    rates = settings.smtp_messages_per_hour_per_network, settings.smtp_messages_per_hour_per_account
    return MxListener(environment, spool, terms, MxRules(*rates, greylist=greylist))

"""The SMTP listeners: for mail from other servers, and for submission."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from mail.smtp.connection_limits import BUDGET, Limits
from mail.smtp.listener import Listener
from mail.smtp.mx_server import Mx, Rules
from mail.smtp.smtp_server import Smtp, Terms
from mail.smtp.submission_server import Submission
from mail.spam.greylist import Greylist
from mail.tls.server_tls import Certificate
from mail.tls.sni_certificates import Keyring
from merganser.errors import MISUSED, Trouble
from merganser.server import sockets
from merganser.server.processes.process_roles import Part
from merganser.settings.settings import PREFIX, Settings
from models.runtime.environment import World
from resolvers.certificates import certificate_reload
from resolvers.submission.smtp_submission import Clerk

COMMANDS = 2000  # per connection
STRANGERS = 50  # per connection


class Common(NamedTuple):
    """The options that all SMTP listeners of a process share."""

    certificate: Keyring
    budget: int  # bytes of messages that are being received


def certificate(settings: Settings) -> Certificate | None:
    """Load the certificate of MERGANSER_TLS_CERT; None if it is not set.

    Raises CommandError if the files can't be read.
    """
    if settings.tls_cert is None:
        return None
    try:
        return Certificate(settings.tls_cert, settings.tls_key)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        text = f"{PREFIX}TLS_CERT cannot be used: {settings.tls_cert}: {reason}"
        raise Trouble(text, code=MISUSED) from problem


async def required(settings: Settings, environment: World) -> None:
    """Raise CommandError if a submission listener is set and no certificate is set or stored."""
    if settings.tls_cert is not None or await certificate_reload.any_stored(environment):
        return
    for name in ("SUBMISSION", "SUBMISSIONS"):
        if name in sockets.listen_addresses(settings):
            text = (
                f"{PREFIX}{name} takes a certificate: set {PREFIX}TLS_CERT, or store one with "
                "`merganser certificate set`"
            )
            raise Trouble(text, code=MISUSED)


async def _keyring(settings: Settings, environment: World, stack: AsyncExitStack) -> Keyring:
    """Load all certificates, and follow their changes until the stack closes."""
    certificates = certificate_reload.keyring(environment, certificate(settings))
    await certificate_reload.refresh(environment, certificates)
    follow_task = asyncio.create_task(certificate_reload.follow(environment, certificates))
    stack.callback(follow_task.cancel)
    return certificates


async def listen(
    settings: Settings, environment: World, process_role: Part, stack: AsyncExitStack
) -> Sequence[Listener]:
    """Start the SMTP listeners that are set, and close them with the stack.

    Raises CommandError if a certificate is missing or an address can't be bound.
    """
    started: list[Listener] = []
    stack.push_async_callback(end, started)
    await required(settings, environment)
    common = Common(await _keyring(settings, environment, stack), BUDGET // process_role.many)
    for name, address in sockets.listen_addresses(settings).items():
        if name in ("HTTP", "LMTP", "ACME_HTTP"):
            continue
        listener = _listener(name, settings, environment, common)
        started.append(listener)
        if name in process_role.smtp:
            for bound_socket in process_role.smtp[name]:
                await listener.start(sock=bound_socket)
            continue
        host, port = sockets.split_host_port(address)
        try:
            await listener.start(host=host, port=port)
        except OSError as problem:
            raise sockets.bind_failure(name, address, problem) from problem
    return started


async def end(listeners: Sequence[Listener]) -> None:
    """Close all listeners concurrently; each one finishes the message that it is storing."""
    await asyncio.gather(*(listener.close() for listener in listeners))


def _listener(name: str, settings: Settings, environment: World, common: Common) -> Smtp:
    limits = Limits(
        budget=common.budget,
        disk_reserve=settings.disk_reserve,
        connections=settings.smtp_connections,
        recipients=settings.smtp_recipients,
        commands=COMMANDS,
        strangers=STRANGERS,
        timeout=settings.smtp_timeout.total_seconds(),
        message_timeout=settings.smtp_message_timeout.total_seconds(),
        lifetime=settings.smtp_lifetime.total_seconds(),
    )
    terms = Terms(
        limits,
        settings.smtp_connections_each,
        common.certificate,
        wrapped=name == "SUBMISSIONS",
        proxies=settings.smtp_proxies,
    )
    spool = settings.data / "spool" / name.lower()
    if name != "SMTP":
        return Submission(environment, spool, terms, Clerk(environment))
    greylist = None
    if delay := settings.greylist_delay:
        greylist = Greylist(environment, delay, settings.greylist_for, settings.greylist_allow)
    rates = settings.smtp_network_rate, settings.smtp_mailbox_rate
    return Mx(environment, spool, terms, Rules(*rates, greylist=greylist))

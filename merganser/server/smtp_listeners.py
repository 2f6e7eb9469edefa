"""Where SMTP listens: for mail from elsewhere, and for submission."""

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

COMMANDS = 2000  # of one connection
STRANGERS = 50  # recipients of one connection whom nobody knows


class Common(NamedTuple):
    """What all listeners have alike."""

    certificate: Keyring
    budget: int  # bytes on their way in


def certificate(settings: Settings) -> Certificate | None:
    """The certificate of files for SMTP, if one is set. Trouble where it cannot be read."""
    if settings.tls_cert is None:
        return None
    try:
        return Certificate(settings.tls_cert, settings.tls_key)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        text = f"{PREFIX}TLS_CERT cannot be used: {settings.tls_cert}: {reason}"
        raise Trouble(text, code=MISUSED) from problem


async def required(settings: Settings, world: World) -> None:
    """Trouble where submission is to be open and there is no certificate, nor one on its way."""
    if settings.tls_cert is not None or await certificate_reload.any_stored(world):
        return
    for name in ("SUBMISSION", "SUBMISSIONS"):
        if name in sockets.listen_addresses(settings):
            text = (
                f"{PREFIX}{name} takes a certificate: set {PREFIX}TLS_CERT, or store one with "
                "`merganser certificate set`"
            )
            raise Trouble(text, code=MISUSED)


async def _keyring(settings: Settings, world: World, stack: AsyncExitStack) -> Keyring:
    """All certificates there are, and what is changed of them while we run."""
    ring = certificate_reload.keyring(world, certificate(settings))
    await certificate_reload.refresh(world, ring)
    following = asyncio.create_task(certificate_reload.follow(world, ring))
    stack.callback(following.cancel)
    return ring


async def listen(
    settings: Settings, world: World, part: Part, stack: AsyncExitStack
) -> Sequence[Listener]:
    """Listen wherever a setting says so; the stack ends it."""
    opened: list[Listener] = []
    stack.push_async_callback(end, opened)
    await required(settings, world)
    common = Common(await _keyring(settings, world, stack), BUDGET // part.many)
    for name, place in sockets.listen_addresses(settings).items():
        if name in ("HTTP", "LMTP", "ACME_HTTP"):
            continue
        listener = _listener(name, settings, world, common)
        opened.append(listener)
        if name in part.smtp:
            for bound in part.smtp[name]:
                await listener.start(sock=bound)
            continue
        host, port = sockets.split_host_port(place)
        try:
            await listener.start(host=host, port=port)
        except OSError as problem:
            raise sockets.bind_failure(name, place, problem) from problem
    return opened


async def end(listeners: Sequence[Listener]) -> None:
    """End them all at once, each with what it is about to take."""
    await asyncio.gather(*(listener.close() for listener in listeners))


def _listener(name: str, settings: Settings, world: World, common: Common) -> Smtp:
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
        return Submission(world, spool, terms, Clerk(world))
    greylist = None
    if delay := settings.greylist_delay:
        greylist = Greylist(world, delay, settings.greylist_for, settings.greylist_allow)
    rates = settings.smtp_network_rate, settings.smtp_mailbox_rate
    return Mx(world, spool, terms, Rules(*rates, greylist=greylist))

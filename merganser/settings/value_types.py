"""Types of settings that are parsed from environment variables."""

import re
from datetime import timedelta
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from merganser.settings.units import (
    parse_duration_if_text,
    parse_size_if_text,
)
from models.runtime.options import Options

HOST_PORT_PATTERN = (
    r"^[^:].*:[0-9]{1,5}$"  # a host is required, since without one all interfaces would listen
)
WEB_ORIGIN_PATTERN = re.compile(  # as browsers send it: lower case, and no slash at its end
    r"\*|null|[a-z][a-z0-9+.-]*://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(?:[0-9]{1,5}|\*))?", re.ASCII
)
LOOPBACK_PATTERN = re.compile(r"(?:localhost|127(?:\.[0-9]+){3}|\[::1\])(?::|$)", re.ASCII)
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
HOST_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"
DEFAULT_OPTIONS = Options()


def _split_words(text: object) -> object:
    return text.replace(",", " ").split() if isinstance(text, str) else text


def check_networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    """Return IP addresses and networks unchanged. Raises ValueError if one is invalid."""
    for network in networks:
        ip_network(network)
    return networks


def check_web_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Return web origins unchanged. Raises ValueError for a text that no browser sends as origin.

    The port can be *, and one origin can be * alone.
    """
    for origin in origins:
        if WEB_ORIGIN_PATTERN.fullmatch(origin) and not _has_default_port(origin):
            continue
        message = f"{origin!r} is no origin that a browser sends"
        proposal = _similar_web_origin(origin)
        raise ValueError(
            f"{message}: write {proposal}"
            if proposal
            else f"{message}: write scheme, host and port, such as https://app.example.org"
        )
    return origins


def _has_default_port(origin: str) -> bool:
    """True if a browser omits the port of this origin."""
    scheme, _, rest = origin.partition("://")
    return rest.endswith(DEFAULT_PORTS.get(scheme, " "))


def _similar_web_origin(text: str) -> str | None:
    """The origin of an address without scheme or with a path; None if it has no host."""
    scheme, separator, rest = text.lower().rpartition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    if not separator:
        is_loopback = LOOPBACK_PATTERN.match(host)
        if not is_loopback and "." not in host:
            return None
        scheme = "http" if is_loopback else "https"
    origin = f"{scheme}://{host.removesuffix(DEFAULT_PORTS.get(scheme, ' '))}"
    return origin if WEB_ORIGIN_PATTERN.fullmatch(origin) else None


ByteSize = Annotated[int, BeforeValidator(parse_size_if_text), Field(ge=0)]
Duration = Annotated[timedelta, BeforeValidator(parse_duration_if_text), Field(ge=timedelta(0))]
DurationList = Annotated[
    tuple[Duration, ...], NoDecode, BeforeValidator(_split_words), Field(min_length=1)
]
WordList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_words)]
WebOriginList = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_split_words), AfterValidator(check_web_origins)
]


def table_default(text: str) -> dict[str, Any]:
    """The schema entry with the text that the settings table shows as the default."""
    return {"default": text}

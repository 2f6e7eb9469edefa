"""Types of settings that are parsed from environment variables."""

from datetime import timedelta
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from merganser.settings.units import (
    parse_duration_if_text,
    parse_size_if_text,
)
from models.runtime.options import Options

HOST_PORT_PATTERN = (
    r"^[^:].*:[0-9]{1,5}$"  # a host is required, since without one all interfaces would listen
)
HOST_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"
DEFAULT_OPTIONS = Options()


def _split_words(text: object) -> object:
    return text.replace(",", " ").split() if isinstance(text, str) else text


def check_networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    """Return IP addresses and networks unchanged. Raises ValueError if one is invalid."""
    for network in networks:
        ip_network(network)
    return networks


ByteSize = Annotated[int, BeforeValidator(parse_size_if_text), Field(ge=0)]
Duration = Annotated[timedelta, BeforeValidator(parse_duration_if_text), Field(ge=timedelta(0))]
DurationList = Annotated[
    tuple[Duration, ...], NoDecode, BeforeValidator(_split_words), Field(min_length=1)
]
WordList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_words)]


def table_default(text: str) -> dict[str, Any]:
    """The schema entry with the text that the settings table shows as the default."""
    return {"default": text}

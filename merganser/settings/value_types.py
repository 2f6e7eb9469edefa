"""Types of settings that are parsed from environment variables."""

from datetime import timedelta
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from merganser.settings.units import size, span
from models.runtime.options import Options

PLACE = r"^[^:].*:[0-9]{1,5}$"  # a host is required, since without one all interfaces would listen
HOST = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"
USUAL = Options()


def _listed(text: object) -> object:
    return text.replace(",", " ").split() if isinstance(text, str) else text


def networked(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return IP addresses and networks unchanged. Raises ValueError if one is invalid."""
    for each in names:
        ip_network(each)
    return names


Size = Annotated[int, BeforeValidator(size), Field(ge=0)]
Span = Annotated[timedelta, BeforeValidator(span), Field(ge=timedelta(0))]
Spans = Annotated[tuple[Span, ...], NoDecode, BeforeValidator(_listed), Field(min_length=1)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]


def shown(text: str) -> dict[str, Any]:
    """The schema entry with the text that the settings table shows as the default."""
    return {"default": text}

"""How settings are spelt: the kinds of values that the environment has."""

from datetime import timedelta
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from merganser.settings.units import size, span
from models.runtime.options import Options

PLACE = r"^[^:].*:[0-9]{1,5}$"  # a host always: without one we would listen to the whole world
HOST = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"
USUAL = Options()


def _listed(text: object) -> object:
    return text.replace(",", " ").split() if isinstance(text, str) else text


def networked(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, where each is an address or a network."""
    for each in names:
        ip_network(each)
    return names


Size = Annotated[int, BeforeValidator(size), Field(ge=0)]
Span = Annotated[timedelta, BeforeValidator(span), Field(ge=timedelta(0))]
Spans = Annotated[tuple[Span, ...], NoDecode, BeforeValidator(_listed), Field(min_length=1)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]


def shown(text: str) -> dict[str, Any]:
    """How the table shows a default that depends on others, or is none."""
    return {"default": text}

"""Kinds of targets that a message is forwarded to."""

from enum import StrEnum


class ForwardTargetKind(StrEnum):
    """How a forwarded message is handed to its target."""

    MAIL = "MAIL"
    RELAY = "RELAY"
    HTTP = "HTTP"

"""Settings of the scanners rspamd and clamd."""

import re
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from mail.network.outbound_http import target
from merganser.settings.value_types import PLACE, USUAL, Size, Span
from models.errors import Invalid

# an SMTP client waits for 10 minutes
SHORTEST, LONGEST = timedelta(seconds=1), timedelta(minutes=4)
DOWN: dict[str, Any] = {"hint": "write accept or defer"}


class ScannerSettings(BaseSettings):
    """Settings of scanners. Each is the variable `MERGANSER_` with the name in capitals."""

    rspamd: str = Field(
        default=USUAL.rspamd,
        description="Where rspamd judges mail that comes in, as in http://127.0.0.1:11333.",
        json_schema_extra={"hint": "write http://host:port"},
    )
    rspamd_password: SecretStr | None = Field(
        default=USUAL.rspamd_password,
        description="The password that rspamd asks for.",
    )
    rspamd_timeout: Span = Field(
        default=USUAL.rspamd_timeout,
        ge=SHORTEST,
        le=LONGEST,
        description="How long a message waits for rspamd.",
    )
    rspamd_max: Size = Field(
        default=USUAL.rspamd_max,
        description="Largest message that rspamd is asked about; larger ones are not judged.",
    )
    rspamd_down: Literal["accept", "defer"] = Field(
        default="accept",
        description="What becomes of mail while rspamd does not answer: accept, it is not judged; "
        "defer, it is to come again later.",
        json_schema_extra=DOWN,
    )
    rspamd_learn: str = Field(
        default=USUAL.rspamd_learn,
        description="Where rspamd learns, as in http://127.0.0.1:11334: what users move into Junk, "
        "and out of it. Without it nothing is learned.",
        json_schema_extra={"hint": "write http://host:port"},
    )
    clamd: str = Field(
        default=USUAL.clamd,
        description="Where clamd looks for viruses in mail that comes in: host:port, or unix: and "
        "the path of its socket.",
        json_schema_extra={"hint": "write host:port or unix:/path"},
    )
    clamd_timeout: Span = Field(
        default=USUAL.clamd_timeout,
        ge=SHORTEST,
        le=LONGEST,
        description="How long a message waits for clamd.",
    )
    clamd_max: Size = Field(
        default=USUAL.clamd_max,
        description="Largest message that clamd is asked about; larger ones are not looked into. "
        "Its own StreamMaxLength should not be less.",
    )
    clamd_down: Literal["accept", "defer"] = Field(
        default="accept",
        description="What becomes of mail while clamd does not answer: accept, nobody has looked; "
        "defer, it is to come again later.",
        json_schema_extra=DOWN,
    )
    virus: Literal["reject", "tag", "quarantine"] = Field(
        default="reject",
        description="What becomes of mail with a virus: reject, it is refused; tag, it goes to "
        "Junk; quarantine, it is held, and refused where it is too large for that.",
        json_schema_extra={"hint": "write reject, tag or quarantine"},
    )

    sent_scan: Literal["off", "viruses", "spam"] = Field(
        default="off",
        description="What is looked for in what users send: off, nothing; viruses, clamd looks; "
        "spam, rspamd judges it as well. What they find is not sent, and the user is told.",
        json_schema_extra={"hint": "write off, viruses or spam"},
    )

    @field_validator("rspamd", "rspamd_learn")
    @classmethod
    def _url(cls, url: str) -> str:
        if url:
            try:
                target(url, private=True)
            except Invalid as problem:
                raise ValueError(problem.message) from None
        if "?" in url:
            raise ValueError("without a query")
        return url

    @field_validator("clamd")
    @classmethod
    def _place(cls, place: str) -> str:
        if not place or place.startswith("unix:/"):
            return place
        if not re.fullmatch(PLACE, place) or not 0 < int(place.rpartition(":")[2]) < 1 << 16:
            raise ValueError("not a place")
        return place

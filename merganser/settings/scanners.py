"""Settings of the scanners rspamd and clamd."""

import re
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from mail.network.outbound_http import parse_target
from merganser.settings.value_types import DEFAULT_OPTIONS, HOST_PORT_PATTERN, ByteSize, Duration
from models.errors import InvalidInput

# an SMTP client waits for 10 minutes
MIN_TIMEOUT, MAX_TIMEOUT = timedelta(seconds=1), timedelta(minutes=4)
DOWN_HINT: dict[str, Any] = {"hint": "write accept or defer"}


class ScannerSettings(BaseSettings):
    """Settings of scanners. Each is the variable `MERGANSER_` with the name in capitals."""

    rspamd: str = Field(
        default=DEFAULT_OPTIONS.rspamd,
        description="Where rspamd judges mail that comes in, as in http://127.0.0.1:11333.",
        json_schema_extra={"hint": "write http://host:port"},
    )
    rspamd_password: SecretStr | None = Field(
        default=DEFAULT_OPTIONS.rspamd_password,
        description="The password that rspamd asks for.",
    )
    rspamd_timeout: Duration = Field(
        default=DEFAULT_OPTIONS.rspamd_timeout,
        ge=MIN_TIMEOUT,
        le=MAX_TIMEOUT,
        description="How long a message waits for rspamd.",
    )
    rspamd_max: ByteSize = Field(
        default=DEFAULT_OPTIONS.rspamd_max,
        description="Largest message that rspamd is asked about; larger ones are not judged.",
    )
    rspamd_down: Literal["accept", "defer"] = Field(
        default="accept",
        description="What becomes of mail while rspamd does not answer: accept, it is not judged; "
        "defer, it is to come again later.",
        json_schema_extra=DOWN_HINT,
    )
    rspamd_learn: str = Field(
        default=DEFAULT_OPTIONS.rspamd_learn,
        description="Where rspamd learns, as in http://127.0.0.1:11334: what users move into Junk, "
        "and out of it. Without it nothing is learned.",
        json_schema_extra={"hint": "write http://host:port"},
    )
    clamd: str = Field(
        default=DEFAULT_OPTIONS.clamd,
        description="Where clamd looks for viruses in mail that comes in: host:port, or unix: and "
        "the path of its socket.",
        json_schema_extra={"hint": "write host:port or unix:/path"},
    )
    clamd_timeout: Duration = Field(
        default=DEFAULT_OPTIONS.clamd_timeout,
        ge=MIN_TIMEOUT,
        le=MAX_TIMEOUT,
        description="How long a message waits for clamd.",
    )
    clamd_max: ByteSize = Field(
        default=DEFAULT_OPTIONS.clamd_max,
        description="Largest message that clamd is asked about; larger ones are not looked into. "
        "Its own StreamMaxLength should not be less.",
    )
    clamd_down: Literal["accept", "defer"] = Field(
        default="accept",
        description="What becomes of mail while clamd does not answer: accept, nobody has looked; "
        "defer, it is to come again later.",
        json_schema_extra=DOWN_HINT,
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
    def _check_scanner_url(cls, url: str) -> str:
        if url:
            try:
                parse_target(url, allow_private=True)
            except InvalidInput as problem:
                raise ValueError(problem.message) from None
        if "?" in url:
            raise ValueError("without a query")
        return url

    @field_validator("clamd")
    @classmethod
    def _check_clamd_address(cls, address: str) -> str:
        if not address or address.startswith("unix:/"):
            return address
        if (
            not re.fullmatch(HOST_PORT_PATTERN, address)
            or not 0 < int(address.rpartition(":")[2]) < 1 << 16
        ):
            raise ValueError("not a place")
        return address

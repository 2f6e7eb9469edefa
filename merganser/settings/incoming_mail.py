"""Settings of incoming mail: authentication checks, trusted headers and quarantine."""

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from merganser.settings.value_types import DEFAULT_OPTIONS, ByteSize, Duration, WordList
from models.runtime.options import MIB


class IncomingSettings(BaseSettings):
    """Settings of incoming mail. Each is the variable `MERGANSER_` with the name in capitals."""

    authserv_ids: WordList = Field(
        default=DEFAULT_OPTIONS.authserv_ids,
        description="Names under which the server that hands mail over by LMTP writes "
        "`Authentication-Results`, with spaces between; what others write is not believed.",
    )
    authserv_hops: int = Field(
        default=DEFAULT_OPTIONS.authserv_hops,
        ge=1,
        le=20,
        description="Which `Received` from the top is that of the server where mail comes in; "
        "only what stands above it is believed.",
    )
    authentication_check: Literal["off", "smtp", "all"] = Field(
        default="smtp",
        description="Which mail is checked here by SPF, DKIM, DMARC and ARC: smtp, what clients "
        "hand in by SMTP; all, by LMTP too, without SPF; off, none, and what the server in front "
        "says is believed of all.",
        json_schema_extra={"hint": "write off, smtp or all"},
    )
    dmarc_policy: Literal["ignore", "junk", "reject"] = Field(
        default="junk",
        description="What comes of mail that we have checked, where DMARC fails and its domain "
        "wants it quarantined or refused: junk, it goes to Junk; reject, it is refused where its "
        "domain wants that, and else goes to Junk; ignore, nothing.",
        json_schema_extra={"hint": "write ignore, junk or reject"},
    )
    arc_trusted: WordList = Field(
        default=DEFAULT_OPTIONS.arc_trusted,
        description="Domains of servers, such as those of mailing lists, whose ARC seals are "
        "believed, with spaces between: where they have seen DMARC pass, it counts.",
    )
    arc_keys: Path | None = Field(
        default=DEFAULT_OPTIONS.arc_keys,
        description="Folder of the keys that seal what is sent on by ARC, a file "
        "`selector._domainkey.example.org.pem` for each domain, readable by nobody else; "
        "`merganser domain arc-key` makes one.",
    )
    spam_headers: WordList = Field(
        default=DEFAULT_OPTIONS.spam_headers,
        description="Fields of a spam filter that are believed of mail that comes by LMTP, with "
        "spaces between; none: no field. The filter must take out those that come from outside.",
        json_schema_extra={
            "default": " ".join(DEFAULT_OPTIONS.spam_headers),
            "hint": f"write some of {' '.join(DEFAULT_OPTIONS.spam_headers)}, or none",
        },
    )

    spam_quarantine: int = Field(
        default=DEFAULT_OPTIONS.spam_quarantine,
        ge=0,
        le=100,
        description="Score from which spam is held, and does not go to Junk; 0: none is.",
    )
    quarantine_for: Duration = Field(
        default=DEFAULT_OPTIONS.quarantine_for,
        ge=timedelta(days=1),
        le=timedelta(days=366),
        description="How long mail is held that nobody lets in.",
    )
    quarantine_max: ByteSize = Field(
        default=DEFAULT_OPTIONS.quarantine_max,
        ge=1 << 16,
        le=256 * MIB,
        description="Largest message that is held.",
    )
    quarantine_items: int = Field(
        default=DEFAULT_OPTIONS.quarantine_items,
        ge=1,
        le=10_000,
        description="Messages that are held for a user; of more the oldest go.",
    )
    quarantine_bytes: ByteSize = Field(
        default=DEFAULT_OPTIONS.quarantine_bytes,
        ge=1 << 16,
        description="Bytes of the messages that are held for a user; of more the oldest go.",
    )
    quarantine_url: str = Field(
        default=DEFAULT_OPTIONS.quarantine_url,
        pattern=r"^(https?://\S+)?$",
        max_length=500,
        description="Page where users see what is held for them, which letters lead to.",
        json_schema_extra={"hint": "write https:// and a page, or nothing"},
    )

    @field_validator("spam_headers")
    @classmethod
    def _check_spam_headers(cls, field_names: tuple[str, ...]) -> tuple[str, ...]:
        known_fields = {name.lower(): name for name in DEFAULT_OPTIONS.spam_headers}
        if field_names == ("none",):
            return ()
        for each in field_names:
            if each.lower() not in known_fields:
                raise ValueError("not a field of a spam filter that we read")
        return tuple(known_fields[each.lower()] for each in field_names)

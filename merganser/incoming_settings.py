"""What an operator can set about mail that comes in: whose words about it are believed."""

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from merganser.spelling import USUAL, Names


class IncomingSettings(BaseSettings):
    """Each is an environment variable: `MERGANSER_` and the name in capitals."""

    authserv_ids: Names = Field(
        default=USUAL.authserv_ids,
        description="Names under which the server that hands mail over by LMTP writes "
        "`Authentication-Results`, with spaces between; what others write is not believed.",
    )
    authserv_hops: int = Field(
        default=USUAL.authserv_hops,
        ge=1,
        le=20,
        description="Which `Received` from the top is that of the server where mail comes in; "
        "only what stands above it is believed.",
    )
    spam_headers: Names = Field(
        default=USUAL.spam_headers,
        description="Fields of a spam filter that are believed of mail that comes by LMTP, with "
        "spaces between; none: no field. The filter must take out those that come from outside.",
        json_schema_extra={
            "default": " ".join(USUAL.spam_headers),
            "hint": f"write some of {' '.join(USUAL.spam_headers)}, or none",
        },
    )

    @field_validator("spam_headers")
    @classmethod
    def _fields(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        there = {name.lower(): name for name in USUAL.spam_headers}
        if names == ("none",):
            return ()
        for each in names:
            if each.lower() not in there:
                raise ValueError("not a field of a spam filter that we read")
        return tuple(there[each.lower()] for each in names)

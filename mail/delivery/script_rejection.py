"""The refusal of a message by a Sieve script (RFC 5429)."""

from mail.envelope.smtp_replies import script_reply
from models.errors import RequestError


class RejectedByScript(RequestError):
    """A script refused the message with a text for its sender."""

    @property
    def smtp_reply(self) -> str:
        """The SMTP reply with the text of the script: one line, in ASCII."""
        return script_reply(self.message)

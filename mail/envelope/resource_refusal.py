"""The refusal of mail to a resource, such as a room."""

from mail.envelope.smtp_replies import message_not_allowed_reply
from models.errors import RequestError

ONLY_INVITATIONS_TEXT = "The address accepts only invitations to events."


class ResourceMailRefused(RequestError):
    """Mail to a resource that is no invitation it can answer. A retry does not help."""

    @property
    def smtp_reply(self) -> str:
        """The SMTP reply with the reason."""
        return message_not_allowed_reply(self.message)

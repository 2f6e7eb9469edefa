"""A request for one of the OAuth pages, and the reasons why it is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from graph.oauth.service import NO_STORE
from graph.oauth.texts.languages import texts_for_browser
from graph.oauth.texts.page_texts import OauthPageTexts
from models.store.columns import ColumnRow
from resolvers.context import Context
from resolvers.oauth import page_states
from resolvers.oauth.issuer import Issuer
from resolvers.oauth.page_states import PageState

SEE_OTHER = 303  # never 307, which would send the password on (RFC 9700, section 2.1)


class NoCookie(Exception):
    """A form was sent without the cookie of its page."""


class ForeignOrigin(Exception):
    """A form was sent by a page of another origin."""


class AccessNotAllowed(Exception):
    """The sign-in is right, but the user can't use the client."""


class PasswordChangeRequired(Exception):
    """The user must set a new password first."""


@dataclass(slots=True)
class PageRequest:
    """A request for a page: its context, the browser's secret, and the texts."""

    request: Request
    ctx: Context
    issuer: Issuer
    browser_secret: str
    texts: OauthPageTexts
    # of the authorization request, once the state of a page was decrypted
    authorization_parameters: Mapping[str, str] = field(default_factory=dict)

    def encrypt(self, state: PageState) -> str:
        """Return the text of a state for the form."""
        return page_states.encrypt_page_state(self.ctx.environment, state, self.browser_secret)

    def decrypt(self, text: str) -> PageState:
        """Return the state of a text. Raises NoCookie and InvalidPage."""
        if not self.browser_secret:
            raise NoCookie
        state = page_states.decrypt_page_state(self.ctx.environment, text, self.browser_secret)
        self.authorization_parameters = state.parameters
        return state

    def use_language_of(self, user: ColumnRow) -> None:
        """Use the language of the user if the browser names no known one."""
        header = self.request.headers.get("accept-language", "")
        self.texts = texts_for_browser(header, user.language)


def see_other(url: str) -> Response:
    """Return a redirect that is followed with GET."""
    return RedirectResponse(url, SEE_OTHER, NO_STORE)

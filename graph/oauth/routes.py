"""All HTTP routes of the OAuth server."""

from starlette.routing import Route

from graph.http.admission_control import AdmissionControl
from graph.oauth.logout_routes import logout_routes
from graph.oauth.page_html import FORM_PATH
from graph.oauth.page_routes import page_routes
from graph.oauth.protocol_routes import protocol_routes
from graph.oauth.registration_route import registration_route
from graph.oauth.service import OauthService
from models.runtime.environment import Environment

# Browsers navigate to it; no page of another origin may read it (RFC 9700, section 2.6).
AUTHORIZATION_PATH = FORM_PATH


def oauth_routes(environment: Environment, admission: AdmissionControl) -> list[Route]:
    """Return the routes of the OAuth server."""
    service = OauthService(environment, admission)
    return [
        *page_routes(service),
        *protocol_routes(service),
        registration_route(service),
        *logout_routes(service),
    ]

"""The texts of the sign-in, second-factor, consent and error pages, and their English form."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.oauth.tables import OauthScope


@dataclass(frozen=True, slots=True)
class OauthPageTexts:
    """Texts of one language. `{client}` is replaced by the name of the client."""

    language: str
    sign_in_title: str
    sign_in_for: str
    username: str
    password: str
    sign_in: str
    wrong_password: str
    too_many_attempts: str  # `{minutes}` is replaced
    second_factor_title: str
    code: str
    code_hint: str
    use_security_key: str
    no_script_for_key: str
    verify: str
    wrong_code: str
    consent_title: str
    consent_intro: str
    signed_in_as: str  # `{user}` is replaced
    redirect_hint: str  # `{host}` is replaced
    allow: str
    deny: str
    other_account: str
    error_title: str
    unknown_client: str
    page_expired: str
    no_cookie: str
    foreign_origin: str
    password_change_required: str
    access_not_allowed: str
    too_many_grants: str
    too_large: str
    sign_in_at_organization: str
    enter_address: str
    no_organization: str
    organization_title: str
    organization_hint: str  # `{host}` is replaced
    organization_failed: str  # `{reason}` is replaced
    organization_denied: str
    no_account: str
    account_ended: str
    internal_error: str  # `{id}` is replaced
    scopes: Mapping[OauthScope, str]


ENGLISH = OauthPageTexts(
    language="en",
    sign_in_title="Sign in",
    sign_in_for="Sign in to continue to {client}.",
    username="Username or email address",
    password="Password",  # noqa: S106 - a label
    sign_in="Sign in",
    wrong_password="The username or the password is wrong.",  # noqa: S106 - a message
    too_many_attempts="There were too many attempts. Try again in {minutes} minutes.",
    second_factor_title="Second factor",
    code="Code",
    code_hint="Enter the code of your authenticator app, or a recovery code.",
    use_security_key="Use a security key",
    no_script_for_key="A security key requires JavaScript. Without it, enter a recovery code.",
    verify="Continue",
    wrong_code="The code is wrong.",
    consent_title="Allow access?",
    consent_intro="{client} requests access to your account:",
    signed_in_as="You are signed in as {user}.",
    redirect_hint="After that you go to {host}.",
    allow="Allow",
    deny="Deny",
    other_account="Use another account",
    error_title="This does not work",
    unknown_client="The application is not known here, or it uses a wrong address. Ask its "
    "developer.",
    page_expired="This page was already used, or it has expired. Go back to the application and "
    "begin again.",
    no_cookie="Your browser sent no cookie. Allow cookies for this site, go back to the "
    "application and begin again.",
    foreign_origin="The form was sent by another site. Go back to the application and begin again.",
    password_change_required="You must first set a new password. Then begin again in the "  # noqa: S106
    "application.",
    access_not_allowed="Your account can't be used with this application. Ask your administrator.",
    too_many_grants="Your account gives access to too many applications. Revoke the access of one "
    "and begin again.",
    too_large="The request is too large.",
    sign_in_at_organization="Sign in with your organization",
    enter_address="Enter your complete email address to sign in with your organization.",
    no_organization="The domain of this address has no sign-in by an organization.",
    organization_title="Your organization",
    organization_hint="You sign in at {host} and then come back.",
    organization_failed="The sign-in at your organization failed: {reason} Ask your administrator.",
    organization_denied="The sign-in at your organization was denied.",
    no_account="There is no account for you here. Ask your administrator.",
    account_ended="Your account has ended or is suspended. Ask your administrator.",
    internal_error="An error has occurred. Try again later. The request ID is {id}.",
    scopes={
        OauthScope.OPENID: "Know who you are",
        OauthScope.PROFILE: "See your name and username",
        OauthScope.EMAIL: "See your email address",
        OauthScope.READ: "Read your mail and settings",
        OauthScope.MAIL_READ: "Read your mail",
        OauthScope.MAIL: "Read, change and delete your mail",
        OauthScope.SUBMIT: "Send mail in your name",
        OauthScope.SETTINGS: "Change your settings, such as filters and forwarding",
        OauthScope.IMAP: "Read, change and delete your mail by IMAP",
        OauthScope.POP3: "Read and delete your mail by POP3",
        OauthScope.SMTP: "Send mail in your name by SMTP",
        OauthScope.SIEVE: "Change your Sieve scripts",
        OauthScope.DOMAIN_ADMIN: "Administer your domains and your account with all your rights",
    },
)

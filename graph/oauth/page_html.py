"""The HTML of the OAuth pages: forms that work without scripts, and their security headers."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import HTMLResponse, Response

from graph.oauth.texts.page_texts import OauthPageTexts
from resolvers.oauth.authorization import AuthorizationRequest
from resolvers.oauth.redirect_uris import form_action_source

FORM_PATH = "/oauth/authorize"
STYLE = (
    ":root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}"
    "body{margin:0;padding:2rem 1rem}"
    "main{max-width:24rem;margin:auto}"
    "h1{font-size:1.4rem}"
    "label{display:block;margin:1rem 0 .3rem}"
    "input{box-sizing:border-box;width:100%;padding:.6rem;font:inherit}"
    "button{margin:1.2rem .6rem 0 0;padding:.6rem 1.2rem;font:inherit}"
    ".problem{border-left:.3rem solid #c00;padding:.2rem .8rem}"
    ".note{opacity:.75;overflow-wrap:anywhere}"
)
# Asks the browser for the signature of a security key and sends the form.
KEY_SCRIPT = """
const form = document.getElementById("factor"), button = document.getElementById("key");
const bytes = t => Uint8Array.from(atob(t.replace(/-/g, "+").replace(/_/g, "/")),
  c => c.charCodeAt(0));
const text = b => btoa(String.fromCharCode(...new Uint8Array(b))).replace(/\\+/g, "-")
  .replace(/\\//g, "_").replace(/=+$/, "");
button.hidden = false;
button.addEventListener("click", async () => {
  const options = JSON.parse(button.dataset.options);
  options.challenge = bytes(options.challenge);
  for (const key of options.allowCredentials || []) key.id = bytes(key.id);
  const found = await navigator.credentials.get({publicKey: options}).catch(() => null);
  if (!found) return;
  const r = found.response;
  form.elements.webauthn.value = JSON.stringify({id: found.id, rawId: text(found.rawId),
    type: found.type, response: {clientDataJSON: text(r.clientDataJSON),
      authenticatorData: text(r.authenticatorData), signature: text(r.signature),
      userHandle: r.userHandle ? text(r.userHandle) : null}});
  form.requestSubmit(document.getElementById("verify"));
});
"""


def _source_hash(text: str) -> str:
    """Return the CSP source of an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_STYLE_SOURCE, _SCRIPT_SOURCE = _source_hash(STYLE), _source_hash(KEY_SCRIPT)


def page_response(
    texts: OauthPageTexts,
    title: str,
    body: str,
    *,
    status: int = 200,
    form_targets: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a page that can't be framed or cached.

    `form_targets` are the CSP sources that its form can be redirected to.
    """
    content = (
        f'<!doctype html><html lang="{texts.language}"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>{body}</main></body>"
        "</html>"
    )
    actions = " ".join(["'self'", *form_targets])
    policy = (
        f"default-src 'none'; style-src {_STYLE_SOURCE}; script-src {_SCRIPT_SOURCE}; "
        f"base-uri 'none'; frame-ancestors 'none'; form-action {actions}"
    )
    security_headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        # not no-referrer: browsers would then send `Origin: null` with the form
        "Referrer-Policy": "same-origin",
    }
    return HTMLResponse(content, status, {**security_headers, **(headers or {})})


def error_page(
    texts: OauthPageTexts,
    message: str,
    *,
    status: int,
    headers: Mapping[str, str] | None = None,
    sign_in_url: str = "",
) -> Response:
    """Return a page that explains why the sign-in can't continue.

    It has a link to `sign_in_url` if one is given.
    """
    body = f'<p class="problem" role="alert">{escape(message)}</p>'
    if sign_in_url:
        body += f'<p><a href="{escape(sign_in_url)}">{escape(texts.sign_in)}</a></p>'
    return page_response(texts, texts.error_title, body, status=status, headers=headers)


def _form(state_text: str, content: str) -> str:
    return (
        f'<form id="factor" method="post" action="{FORM_PATH}">'
        f'<input type="hidden" name="state" value="{escape(state_text)}">{content}</form>'
    )


def _problem(message: str) -> str:
    return f'<p class="problem" role="alert">{escape(message)}</p>' if message else ""


def _targets(request: AuthorizationRequest) -> list[str]:
    return [form_action_source(request.redirect_uri)]


def sign_in_page(
    texts: OauthPageTexts,
    request: AuthorizationRequest,
    state_text: str,
    *,
    has_organizations: bool = False,
    problem: str = "",
    username: str = "",
    status: int = 200,
) -> Response:
    """Return the page that asks for username and password.

    With `has_organizations` the user can choose the sign-in of the organization.
    """
    intro = texts.sign_in_for.format(client=request.client.row.name)
    content = (
        f"<p>{escape(intro)}</p>{_problem(problem)}"
        f'<label for="username">{escape(texts.username)}</label>'
        f'<input id="username" name="username" autocomplete="username" autocapitalize="none" '
        f'spellcheck="false" maxlength="320" required value="{escape(username)}">'
        f'<label for="password">{escape(texts.password)}</label>'
        '<input id="password" name="password" type="password" '
        'autocomplete="current-password" required>'
        f'<button name="choice" value="sign-in">{escape(texts.sign_in)}</button>'
    )
    if has_organizations:
        content += (
            '<p><button name="choice" value="organization" formnovalidate>'
            f"{escape(texts.sign_in_at_organization)}</button></p>"
        )
    return page_response(
        texts,
        texts.sign_in_title,
        _form(state_text, content),
        status=status,
        form_targets=_targets(request),
    )


def identity_provider_redirect_page(texts: OauthPageTexts, url: str, host: str) -> Response:
    """The page that redirects the browser to an identity provider at once, and links to it.

    Its text names `host` as the place of the sign-in.
    """
    body = (
        f"<p>{escape(texts.organization_hint.format(host=host))}</p>"
        f'<p><a href="{escape(url)}">{escape(texts.verify)}</a></p>'
    )
    headers = {"Refresh": f"0; url={url}", "Referrer-Policy": "no-referrer"}
    return page_response(texts, texts.organization_title, body, headers=headers)


def second_factor_page(
    texts: OauthPageTexts,
    request: AuthorizationRequest,
    state_text: str,
    *,
    key_options: Mapping[str, Any] | None,
    problem: str = "",
    status: int = 200,
) -> Response:
    """Return the page that asks for the second factor.

    `key_options` are the options of `navigator.credentials.get`; None: no security key.
    """
    key_part = ""
    if key_options is not None:
        options_text = escape(json.dumps(key_options))
        key_part = (
            '<input type="hidden" name="webauthn" value="">'
            f'<button type="button" id="key" hidden data-options="{options_text}">'
            f"{escape(texts.use_security_key)}</button>"
            f"<noscript><p>{escape(texts.no_script_for_key)}</p></noscript>"
            f"<script>{KEY_SCRIPT}</script>"
        )
    content = (
        f"<p>{escape(texts.code_hint)}</p>{_problem(problem)}"
        f'<label for="code">{escape(texts.code)}</label>'
        '<input id="code" name="code" autocomplete="one-time-code" autocapitalize="none" '
        'spellcheck="false" maxlength="64">'
        f'<button id="verify" name="choice" value="verify">{escape(texts.verify)}</button>'
        f"{key_part}"
    )
    return page_response(
        texts,
        texts.second_factor_title,
        _form(state_text, content),
        status=status,
        form_targets=_targets(request),
    )


def consent_page(
    texts: OauthPageTexts, request: AuthorizationRequest, state_text: str, username: str
) -> Response:
    """Return the page that asks the user to allow or deny access."""
    intro = texts.consent_intro.format(client=request.client.row.name)
    items = "".join(f"<li>{escape(texts.scopes[scope])}</li>" for scope in request.scopes)
    parts = urlsplit(request.redirect_uri)
    host = parts.netloc or f"{parts.scheme}:"
    content = (
        f"<p>{escape(intro)}</p><ul>{items}</ul>"
        f'<p class="note">{escape(texts.signed_in_as.format(user=username))} '
        f"{escape(texts.redirect_hint.format(host=host))}</p>"
        f'<button name="choice" value="allow">{escape(texts.allow)}</button>'
        f'<button name="choice" value="deny">{escape(texts.deny)}</button>'
        f'<p><button name="choice" value="other">{escape(texts.other_account)}</button></p>'
    )
    return page_response(
        texts, texts.consent_title, _form(state_text, content), form_targets=_targets(request)
    )

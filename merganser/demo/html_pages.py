"""Message texts as HTML pages and newsletters, AMP, Markdown and enriched text."""

from html import escape

from merganser.demo.text_library import RIGHT_TO_LEFT, GeneratorState, MessageText

_TINTS = ("#1f6f78", "#8a5a2b", "#3d5a80", "#6b705c", "#7b2d26", "#2a6041")
_FONTS = (
    "Georgia, serif",
    "Helvetica, Arial, sans-serif",
    "Verdana, sans-serif",
    "Palatino, serif",
)


def _html_paragraphs(message_text: MessageText) -> list[str]:
    return [escape(paragraph).replace("\n", "<br>\n") for paragraph in message_text.paragraphs]


def _html_document(message_text: MessageText, head: str, body: str) -> str:
    direction = ' dir="rtl"' if message_text.language in RIGHT_TO_LEFT else ""
    return (
        f'<!DOCTYPE html>\n<html lang="{message_text.language}"{direction}>\n<head>\n'
        f"<title>{escape(message_text.subject)}</title>\n{head}</head>\n<body>\n{body}</body>\n</html>\n"
    )


def simple_page(state: GeneratorState, message_text: MessageText) -> str:
    """Write a page as mail programs do."""
    font = state.rng.choice(_FONTS)
    body = "".join(f"<p>{row}</p>\n" for row in _html_paragraphs(message_text))
    if message_text.quoted_text:
        style = "margin:0 0 0 .8ex;border-left:1px solid #ccc;padding-left:1ex"
        quoted = escape(message_text.quoted_text).replace("\n", "<br>\n")
        body += f'<blockquote type="cite" style="{style}">{quoted}</blockquote>\n'
    return _html_document(
        message_text, "", f'<div style="font-family:{font};font-size:15px">\n{body}</div>\n'
    )


def page_with_pictures(state: GeneratorState, message_text: MessageText, sources: list[str]) -> str:
    """Write a simple page with pictures between its paragraphs."""
    rows = [f"<p>{row}</p>\n" for row in _html_paragraphs(message_text)]
    for at, source in enumerate(sources):
        index = min(len(rows), 2 + 2 * at)
        rows.insert(index, f'<p><img src="{source}" alt="" style="max-width:100%"></p>\n')
    font = state.rng.choice(_FONTS)
    return _html_document(
        message_text, "", f'<div style="font-family:{font}">\n{"".join(rows)}</div>\n'
    )


def newsletter_page(state: GeneratorState, message_text: MessageText, sources: list[str]) -> str:
    """Write a page of tables and inline CSS, with pictures, a button and a remote picture."""
    rng, tint = state.rng, state.rng.choice(_TINTS)
    number, font = rng.randint(1000, 99999), rng.choice(_FONTS)
    pictures = "".join(_picture_row(source) for source in sources)
    remote = f"http://example.com/pictures/{number}.jpg"
    text = "".join(
        f'<tr><td style="padding:8px 24px;font:16px/1.5 {font};color:#222">{row}</td></tr>\n'
        for row in _html_paragraphs(message_text)
    )
    head = (
        '<meta name="viewport" content="width=device-width">\n<style>\n'
        f"a {{ color: {tint} }}\n.button:hover {{ background: #444 !important }}\n"
        "@media (max-width: 480px) { .sheet { width: 100% !important } }\n"
        "@media (prefers-color-scheme: dark) { body { background: #222 } }\n</style>\n"
    )
    body = (
        '<table role="presentation" width="100%" bgcolor="#f2efe6"><tr><td align="center">\n'
        '<table class="sheet" role="presentation" width="600" style="background:#fff">\n'
        f'<tr><td style="background:{tint};color:#fff;padding:16px 24px;font:bold 24px {font}">'
        f"{escape(message_text.sender.name)}</td></tr>\n{pictures}{text}"
        f'<tr><td align="center" style="padding:16px"><a class="button" '
        f'href="https://example.com/read/{number}?from=mail" style="background:{tint};color:#fff;'
        f'padding:12px 20px;border-radius:6px;text-decoration:none">Read on</a></td></tr>\n'
        f'{_picture_row(remote)}<tr><td style="padding:12px 24px;font:12px {font};color:#777">'
        f'You do not want this letter any more? <a href="https://example.com/stop/{number}">'
        f"Unsubscribe</a>.</td></tr>\n</table>\n</td></tr></table>\n"
        f'<img src="http://example.com/open/{number}.gif" width="1" height="1" alt="">\n'
    )
    return _html_document(message_text, head, body)


def _picture_row(source: str) -> str:
    style = "display:block;width:100%;max-width:600px"
    return f'<tr><td><img src="{source}" alt="" style="{style}"></td></tr>\n'


def amp_page(message_text: MessageText) -> str:
    """Write a page in AMP for Email."""
    body = "".join(f"<p>{row}</p>\n" for row in _html_paragraphs(message_text))
    return (
        '<!doctype html>\n<html amp4email data-css-strict>\n<head>\n<meta charset="utf-8">\n'
        '<script async src="https://cdn.example.com/v0.js"></script>\n'
        "<style amp4email-boilerplate>body{visibility:hidden}</style>\n"
        "<style amp-custom>p { margin: 12px }</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def markdown_text(message_text: MessageText) -> str:
    """Write a note in Markdown."""
    return "\n\n".join((f"# {message_text.subject}", *message_text.paragraphs, "* * *")) + "\n"


def enriched_text(message_text: MessageText) -> str:
    """Write a note as text/enriched (RFC 1896)."""
    rows = [paragraph.replace("<", "<<") for paragraph in message_text.paragraphs]
    return "\n\n".join((f"<bold>{message_text.subject}</bold>", *rows)) + "\n"

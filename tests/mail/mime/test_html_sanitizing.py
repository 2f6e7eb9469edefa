"""Sanitizing of HTML from messages, and its conversion to text."""

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail.mime import SanitizedHtml, html_to_text, sanitize_html
from mail.mime.html_content.tokenizer import HtmlToken, tokenize


def sanitize(html: str, *, remote_images: bool = False) -> SanitizedHtml:
    return sanitize_html(
        html,
        allow_remote_images=remote_images,
        url_for_content_id=lambda cid: f"/files/{cid}" if cid == "a" else None,
    )


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>Hi <b>you<p>two", "<p>Hi <b>you</b></p><p>two</p>"),
        ("<script>alert(1)</script>x", "x"),
        ("<style>a{}</style><title>t</title>x", "x"),
        ('<p onclick="x()">x', "<p>x</p>"),
        ("<form action=x><input name=y>z</form>", "z"),
        ("<svg><a href=x>q</a></svg>x", "x"),
        ('<meta http-equiv=refresh content="0;url=x">x', "x"),
        ("<!-- <b> --><i>x</i>", "<i>x</i>"),
        ("a < b & c", "a &lt; b &amp; c"),
        ("<table><tr><td>1<td>2</table>",
         "<table><tbody><tr><td>1</td><td>2</td></tr></tbody></table>"),
        ('<p style="color:red;position:fixed">x', '<p style="color:red">x</p>'),
        ('<p style="width:calc(1px*-9);margin:0 -5px;color:\\72 ed">x', "<p>x</p>"),
        ('<img src="cid:a">', '<img src="/files/a">'),
        ('<img src="cid:b">', "<img>"),
        ('<img src="data:image/png;base64,AA==">', '<img src="data:image/png;base64,AA==">'),
        ('<img src="data:image/svg+xml;base64,AA==">', "<img>"),
        ("<img src=/local>", "<img>"),
    ],
)  # fmt: skip
def test_html_is_sanitized(html: str, expected: str) -> None:
    assert sanitize(html).html == expected


@pytest.mark.parametrize(
    "href",
    [
        "javascript:alert(1)",
        " java\nscript:alert(1)",
        "data:text/html,x",
        "/x",
        "//x",
        "cid:a",
        "file:///x",
    ],
)
def test_unsafe_link_target_is_removed(href: str) -> None:
    assert "href" not in sanitize(f'<a href="{href}">x</a>').html


def test_link_opens_new_window_without_referrer() -> None:
    html = sanitize('<a href="https://x/?a=1&amp;b" target=_self rel=opener>x</a>').html
    assert html == '<a href="https://x/?a=1&amp;b" target="_blank" rel="noopener noreferrer">x</a>'


@pytest.mark.parametrize(
    "html",
    [
        "<img src=http://x/a.png>",
        "<img src='//x/a.png'>",
        "<img srcset='https://x/a.png 2x'>",
        "<table background=http://x/a.png><tr><td>x</table>",
        "<p style=\"background:url('http://x/a.png')\">x",
    ],
)
def test_remote_images_are_blocked_and_counted(html: str) -> None:
    result = sanitize(html)
    assert result.blocked_images == 1
    assert "//x" not in result.html


def test_remote_images_are_kept_if_allowed() -> None:
    result = sanitize("<img src=http://x/a.png srcset='https://x/b.png 2x'>", remote_images=True)
    assert result == SanitizedHtml(
        '<img src="http://x/a.png" srcset="https://x/b.png 2x">', 0, too_complex=False
    )


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 501 + "<i>deep",
        "<p>long" + "x" * (2 << 20),
        "<li><dd>" * 300,
        "<table><td>" * 400 + "<b>",
    ],
)
def test_too_complex_html_is_shown_as_text(html: str) -> None:
    result = sanitize(html)
    assert result.too_complex
    assert result.html.count("<") == 2


@pytest.mark.parametrize(
    "html",
    [
        "<div><table><td></div>" * 300,
        "<div>" * 400 + "<table><td>" + "</div>" * 400 + "<div>" * 400,
        "<div>" * 400 + "<!--" + "</div>" * 400 + "-->" + "<div>" * 400,
        "<div>" * 400 + "<script></div></script>" * 400 + "<div>" * 400,
    ],
)
def test_hidden_nesting_is_too_complex(html: str) -> None:
    assert sanitize(html).too_complex


@pytest.mark.parametrize(
    "html",
    [
        "<p>x" * 5000,
        "<tr><td>x" * 3000,
        "<table>" + "<tr><td>x" * 3000,
        "<li>x" * 3000,
        "<br>" * 3000,
    ],
)
def test_implicitly_closed_elements_are_not_too_complex(html: str) -> None:
    assert not sanitize(html).too_complex


class TagCollector(HTMLParser):
    """A parser that collects the tags, attribute names and attribute values of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.values: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names.update(name for name, _ in attrs)
        self.values.extend(value or "" for _, value in attrs)


HOSTILE_FRAGMENTS = """
    < > </ p div table td a href= src= javascript:x ' " <!-- --> <script <style> <svg> <math> <img
    on onerror=x = &lt; &#60; / <![CDATA[ ]]> <textarea> <noscript> style= url(http://x) <a <title>
"""


@given(
    st.lists(st.sampled_from([*HOSTILE_FRAGMENTS.split(), " ", "\0", "\n"]), max_size=40).map(
        "".join
    )
)
@settings(max_examples=1000)
def test_random_html_contains_nothing_dangerous_after_sanitizing(html: str) -> None:
    collector = TagCollector()
    collector.feed(sanitize(html).html)
    assert not collector.tags & {"script", "style", "svg", "math", "textarea", "noscript", "title"}
    assert not collector.names & {"onerror", "on"}
    assert not any("url(" in value or "javascript:" in value for value in collector.values)
    html_to_text(html)


def test_html_is_converted_to_text() -> None:
    html = """<html><head><title>t</title></head><body><p>Dear  Ada,</p>one<br>two
        <ul><li>first<li>second</ul><blockquote>said<br>he</blockquote>
        <table><tr><td>1<td>2</table>&lt;b&gt; caf&eacute;<pre>x
  y</pre></body>"""
    assert html_to_text(html) == (
        "Dear Ada,\n\none\ntwo\n\n- first\n- second\n\n> said\n> he\n\n1 2\n\n<b> café\n\nx\n  y"
    )


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<<<<a>b", "<<<b"),
        ("1 << 2 < 3 <", "1 << 2 < 3 <"),
        ("<1<p>2<", "<1\n\n2<"),
        ("&lt;b&gt; &amp;lt; &lt", "<b> &lt; <"),
        ("&&lt;lt; &#6&lt;0;", "&<lt; <0;"),
    ],
)
def test_signs_outside_of_tags_are_kept_as_text(html: str, text: str) -> None:
    assert html_to_text(html) == text


def test_less_than_signs_are_one_token() -> None:
    assert list(tokenize("<" * 1000)) == [HtmlToken("&lt;" * 1000)]  # one for each is slow

"""A reader of HTML that notes what a browser would complain of or load."""

import re
from html.parser import HTMLParser

_VOID = {"meta", "img", "br", "hr", "input", "link"}
_LOADING = {"src", "href", "srcset", "poster", "data", "action", "xlink:href", "background"}


class Page(HTMLParser):
    """``errors``: tags that do not match; ``loads``: values of attributes that make a browser fetch; ``text``: what is
    read; ``tags``: how often each stands there; ``handlers``: attributes that run code."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.html, self.errors, self.loads, self.handlers = html, [], [], []
        self.tags: dict[str, int] = {}
        self._open, self._text = [], []
        self.feed(html)
        self.close()
        self.errors += [f"<{tag}> is never closed" for tag in self._open]

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        names = [name for name, _ in attributes]
        self.errors += [f"<{tag}> has an attribute twice"] if len(set(names)) < len(names) else []
        self.loads += [value or "" for name, value in attributes if name in _LOADING]
        self.handlers += [name for name in names if name.startswith("on")]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.errors.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        if "style" not in self._open:
            self._text.append(data)

    @property
    def text(self) -> str:
        """All text outside the style sheet, white space as single blanks."""
        return " ".join("".join(self._text).split())

    def check(self) -> None:
        """Well formed, without code, and loading nothing but what it holds."""
        assert not self.errors, self.errors[:5]
        assert self.html.lstrip().lower().startswith("<!doctype html>")
        assert "script" not in self.tags and "link" not in self.tags and not self.handlers
        assert all(load.startswith("data:image/") for load in self.loads), [load[:60] for load in self.loads]
        assert not re.search(r"@import|url\(", self.html)
        assert 'name="viewport"' in self.html and "prefers-color-scheme" in self.html

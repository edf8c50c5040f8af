"""A report as a test reads it, and names from outside that would do harm if they could."""

import re
from html.parser import HTMLParser

HOSTILE = [
    "<script>document.title='hurt'</script>",
    "\"'><img src=x onerror=\"document.title='hurt'\">",
    "\u202e鳥 ``${1}`` {{ 7*7 }} {% raw %}\x00\x1b[31m\ud800</style></template>",
    "Very" + "long" * 120,
]


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def assert_self_contained(text: str) -> Page:
    """The file needs nothing from anywhere else, and nothing in it sends anything."""
    assert not re.search(r"https?:|//[a-z]", re.sub(r"data:[a-z/]+;base64,[\w+/=]+", "", text))
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "base"}
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value[:60])
    assert "@import" not in text
    assert "url(" not in text
    return page

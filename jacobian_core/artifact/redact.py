"""Keep secrets out of messages: signed URLs, credentials in URLs, and the values of secret environment variables."""

from __future__ import annotations

import os
import re

_URL_SECRETS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^\s/@'\"]*@)?(?P<rest>[^\s?#'\"]*)(?:[?#][^\s'\"]*)?", re.I
)
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)", re.I)
_SHORTEST_SECRET = 8  # characters; shorter values are words that appear by chance


def redact(text: str) -> str:
    """`text` on one line, without query strings, credentials in URLs, and values of secret environment variables."""
    return hide_secrets(" ".join(text.split()))


def hide_secrets(text: str) -> str:
    """The same with its lines as they are."""
    text = _URL_SECRETS.sub(r"\g<scheme>\g<rest>", text)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text

"""Credentials stay out of everything that is written: settings are refused that hold any, messages lose them."""

import os
import re

# What these hold is never shown. They are read by the libraries that need them, from the environment alone.
SECRETS = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "GOOGLE_API_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING",
)  # fmt: skip
_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
_IN_QUERY = re.compile(r"(?i)(?<=[?&])((?:x-amz-)?(?:signature|credential|security-token|token|key|sig|password)=)[^&\s'\"]+")
_SHORTEST = 6  # a shorter value would blank out ordinary words


def redacted(text: str) -> str:
    """``text`` without ``user:password@`` in URLs, without signatures and keys in their queries, without known secrets."""
    text = _IN_QUERY.sub(r"\1***", _IN_URL.sub("***@", text))
    for name in SECRETS:
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return text

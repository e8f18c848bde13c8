"""What must be said to huggingface_hub before anything imports it: it reads its environment once. Nothing of ours is
imported here."""

import os
from urllib.parse import urlsplit


def prepare_hub_client() -> None:
    """Turns Xet off where `HF_ENDPOINT` names another server than the Hub; `HF_HUB_DISABLE_XET`, where set, stays.

    Only the Hub itself keeps large files in Xet. To another server the client would upload them there all the same, and
    end with a ConnectionError that does not say why.
    """
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    if not f".{host}".endswith((".huggingface.co", ".hf.co")):
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

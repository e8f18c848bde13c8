"""What must be said to huggingface_hub before anything imports it: it reads its environment once."""

import os
from urllib.parse import urlsplit

from pretraining.errors import UserError


def prepare_hub_client() -> None:
    """Turns Xet off where `HF_ENDPOINT` names another server than the Hub; `HF_HUB_DISABLE_XET`, where set, stays.

    Only the Hub itself keeps large files in Xet. To another server the client would upload them there all the same, and
    end with a ConnectionError that does not say why.

    Raises:
        UserError: `HF_ENDPOINT` is no address; whatever imports the client would end there.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0  # reading the port checks it
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"HF_ENDPOINT is {endpoint!r}: give an address, as in https://huggingface.co, or unset it.")
    if not f".{parts.hostname}".endswith((".huggingface.co", ".hf.co")):
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

"""What goes wrong between us and the Hub, each in one sentence that names the mend, and never a token."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (  # HTTPError: of httpx or httpx2, whichever the client is made with
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from pretraining.errors import UserError

AGAIN = "the same command, given again, goes on from there: what has arrived is not sent twice"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, to a token that may write"
# The Hub answers a full account with 403, as it answers a missing right; its words tell them apart.
FULL = re.compile(r"storage|quota|exceed|too large", re.IGNORECASE)


class Unreachable(UserError):
    """The Hub cannot be reached now, through no mistake in the command; the same one may work later."""


def without_token(text: str) -> str:
    """Text that may be shown, in one line and without a full stop."""
    token = get_token()
    shown = text.replace(token, "(the token)") if token else text
    return " ".join(shown.split()).rstrip(".")


def words(error: BaseException) -> str:
    """What the server says, or else the library; of a whole page its beginning."""
    return without_token(getattr(error, "server_message", None) or str(error))[:300]


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """What the client raises inside, about this repository, becomes a UserError; what is no trouble of the Hub's stays.

    The client's own error is not kept as the cause: it holds the request, whose headers have the token.
    """
    found = None
    try:
        yield
    except UserError:
        raise
    except (HTTPError, ConnectionError, LocalTokenNotFoundError, ValueError, RuntimeError) as error:
        # What a file's upload or the check of README.md raises the client wraps in an error of its own.
        inner = error.__cause__ if isinstance(error.__cause__, HTTPError) else error
        found = explain(error if isinstance(error, HTTPError) else inner, repo)
        if found is None:
            raise
    if found is not None:
        raise found from None


def explain(error: BaseException, repo: str) -> UserError | None:
    """The sentence for an error of the client's; None: it is none of the Hub's."""
    endpoint = constants.ENDPOINT
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f"{repo} cannot be pushed to while HF_HUB_OFFLINE is set: unset it.")
    if isinstance(error, LocalTokenNotFoundError):
        return UserError(f"there is no token to push to {repo} with: {LOG_IN}.")
    if isinstance(error, HfHubHTTPError):
        return explain_response(error, error.response.status_code, repo)
    if isinstance(error, ConnectionError) and "/xet-" in str(error):
        return UserError(
            f"{endpoint} has no Xet storage, which the client uploads large files to: set HF_HUB_DISABLE_XET=1."
        )
    if isinstance(error, JSONDecodeError):
        return no_hub(error)
    if isinstance(error, HTTPError | ConnectionError):
        return Unreachable(f"the connection to {endpoint} fails ({words(error)}): mend it; {AGAIN}.")
    if "LFS batch API returned errors" in str(error):
        return full(error, repo) if FULL.search(str(error)) else refused(error, repo)
    return None


def explain_response(error: HfHubHTTPError, status: int, repo: str) -> UserError:
    said = words(error)
    # Every other 401 is the Hub's word for what a token that it knows may not see.
    if status == 401 and re.search("invalid (credentials|user token)", str(error), re.IGNORECASE):
        return UserError(f"{constants.ENDPOINT} does not know the token that is sent to it: {LOG_IN}.")
    if status in (402, 413, 507) or (status == 403 and FULL.search(said)):
        return full(error, repo)
    if status in (401, 403):
        return UserError(f"the token may not write to {repo} ({said}): give it that right, or {LOG_IN}.")
    if status == 404 and error.response.url.path.endswith("/whoami-v2"):
        return no_hub(error)
    if status == 404:
        return UserError(
            f"there is no model {repo} that the token may see ({said}): the name is taken by something else or was "
            "changed; name another repository, or give the token the right."
        )
    if status in (409, 412):
        return UserError(f"{repo} was changed by somebody else in the meantime ({said}): give the same command again.")
    if status == 429 or status >= 500:
        return Unreachable(f"{constants.ENDPOINT} has trouble, HTTP {status} ({said}): wait; {AGAIN}.")
    return refused(error, repo)


def no_hub(error: BaseException) -> UserError:
    """A proxy's log-in page, or another server."""
    return UserError(
        f"{constants.ENDPOINT} does not answer as a Hub does ({words(error)}): look at it in a browser, and at "
        "HF_ENDPOINT."
    )


def full(error: BaseException, repo: str) -> UserError:
    return UserError(f"there is no room for {repo} ({words(error)}): make room in the account, or buy some; {AGAIN}.")


def refused(error: BaseException, repo: str) -> UserError:
    return UserError(f"{constants.ENDPOINT} refuses what is pushed to {repo}: {words(error)}.")

"""The Hub's client: asked again where that may help, its errors explained."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pnc_hub.errors import ArtifactError, CloneNotFoundError, HubError, located, one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Seconds before a request is made again that failed for no reason of its own and that the client does not repeat.
DELAYS = (0.5, 2.0)

# By the names of the client's errors: in its older versions some of them have other bases.
_EXPLAINED = {
    "GatedRepoError": "the repository is gated: ask for access on its page, then log in (hf auth login)",
    "DisabledRepoError": "the Hub has disabled access to the repository: its page gives the reason; take another clone",
    "RepositoryNotFoundError": "no such repository on the Hub, or it is private: check the name, or log in (hf auth login)",
    "RevisionNotFoundError": "the repository has no such revision: give a branch, tag, pull request or commit of its page",
    "LocalEntryNotFoundError": "not in the local cache, and the Hub was not asked or could not be reached; fetch it once"
    " while connected",
    "EntryNotFoundError": "the repository has no such file, so it holds no clone; check the name and the revision",
    "HFValidationError": "not a valid Hub id; give 'user/name'",
}

Result = TypeVar("Result")


def api(token: str | bool | None) -> HfApi:
    """The Hub's client, which says who asks."""
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="pnc-hub")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later: the Hub failed, or the connection broke off."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in (500, 502, 503, 504)
    final = (errors.LocalEntryNotFoundError, errors.LocalTokenNotFoundError, errors.OfflineModeIsEnabled)
    if isinstance(error, (ArtifactError, *final)):
        return False
    transport = errors.HfHubHTTPError.__bases__[0]  # of the HTTP library, which is another one in other versions
    # hf_xet raises RuntimeError and ConnectionError; the client OSError without a number where a size is wrong
    return isinstance(error, (transport, RuntimeError, OSError)) and getattr(error, "errno", None) is None


def retried(call: Callable[[], Result], is_repeatable: Callable[[Exception], bool] = is_transient) -> Result:
    """The result of ``call``, which is made again, at most twice, where ``is_repeatable`` says that this may help."""
    for delay in DELAYS:
        try:
            return call()
        except Exception as error:
            if not is_repeatable(error):
                raise
        time.sleep(delay)
    return call()


@contextmanager
def explained(repo_id: str, revision: str | None, file: str) -> Iterator[None]:
    """What the client raises within becomes an error of ours, with the remedy."""
    from huggingface_hub.errors import HfHubHTTPError

    with located(repo_id=repo_id, revision=revision, file=file):
        try:
            yield
        except ArtifactError:
            raise
        except Exception as error:  # huggingface_hub, its HTTP client and hf_xet each raise errors of their own
            # where a copy in the cache would have served, the client wraps what the Hub answered
            kind, reason = _explanation(error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error)
            raise kind(reason) from error


def _explanation(error: BaseException) -> tuple[type[ArtifactError], str]:
    for kind in type(error).__mro__:  # a class stands before its bases
        if kind.__name__ in _EXPLAINED:
            refused = kind.__name__ in ("GatedRepoError", "DisabledRepoError")
            return HubError if refused else CloneNotFoundError, _EXPLAINED[kind.__name__]
    said, number = first_line(error), getattr(error, "errno", None)
    if number is not None:
        state = "is full" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "cannot be written"
        remedy = "make room or give leave, or name another folder with cache_dir="
        return HubError, f"the cache {state} ({said}): {remedy}"
    remedies = {
        401: "log in again (hf auth login), or pass token=False for a public clone",
        403: "ask its owner for access, or log in with another account (hf auth login)",
        429: "it limits how often it is asked: wait, and log in to be allowed more (hf auth login)",
    }
    return HubError, f"the Hub did not deliver it ({said}); {remedies.get(status(error), 'try again later')}"


def status(error: BaseException) -> Any:
    """The status code with which the Hub answered; None where it did not."""
    return getattr(getattr(error, "response", None), "status_code", None)


def first_line(error: BaseException) -> str:
    """What ``error`` says first: the Hub's own words, if it answered."""
    said = getattr(error, "server_message", None) or str(error)
    return one_line(said.strip().partition("\n")[0]) or type(error).__name__

"""A small Hugging Face Hub on loopback, for tests that run the real huggingface_hub client.

It keeps model repositories in memory and speaks the part of the Hub's HTTP interface that publishing,
reading, searching and downloading need. Large files are served by a second listener under another host name,
as the real Hub serves them from a CDN, and that listener refuses any request that carries a token. Regular files are
served after a redirect to `/api/resolve-cache/...`, so a download of one makes two requests of a kind.

`LoopbackHub(page_size=, part_size=, xet_store=, certificate=)`: long listings in pages, large uploads in parts, hf_xet's
`local://` store in a folder, https (then anonymous users get a bare 401, as from the real Hub).

What is done through the client: private (`create_repo(private=True)`, `update_repo_settings`), gated
(`update_repo_settings(gated="manual")`, `grant_access(repo_id, user)`) and moved (`move_repo`) repositories, branches,
tags, pull requests.

What is not:

- `hub.add_user(name, orgs, role=)` returns a token; `hub.disable(repo_id)` takes a repository down.
- `hub.requests`: every request and answer, as `RequestRecord`; `hub.requests.clear()` before a measurement.
- `hub.fail(pattern, effect, times=1, after=0)`: what goes wrong with the requests whose `"METHOD path"` matches.
  `hub.fail(pattern, status=503, headers={...})` answers a status. `with hub.fail(...)` ends it with the block.
- Effects, in `faults`: `drop()`, `lose_answer()` (it is done, the client does not learn of it), `sleep(seconds)`,
  `cut(after)`, `corrupt(at=-1)`, `html()`, `replace(content)`, `flood(size)`, `wrong_etag(etag)`, `wrong_size(size)`,
  `redirect(location)` (`redirect()` is a loop), `rate_limit(seconds, style="ratelimit" | "retry-after")`,
  `refuse(status, headers, message)`, and any function like those that they return (see `Effect`).
  Those on content leave answers alone that have none (redirects, answers to HEAD).

Example:
    >>> from huggingface_hub import HfApi
    >>> with LoopbackHub() as hub:
    ...     token = hub.add_user("alice")
    ...     HfApi(endpoint=hub.endpoint, token=token).create_repo("alice/resnet").repo_id
    'alice/resnet'
"""

from . import faults
from .certificates import make_certificate
from .hub import LoopbackHub
from .traffic import Effect, Fault, RequestRecord

__all__ = ["Effect", "Fault", "LoopbackHub", "RequestRecord", "faults", "make_certificate"]

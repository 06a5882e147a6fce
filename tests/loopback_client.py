"""What the tests of the loopback Hub share: a Hub of their own, clients of it, and contents.

PYTEST_DONT_REWRITE: tests import it as a module before pytest does as a plugin.
"""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from loopback_hub import LoopbackHub

REPO = "alice/resnet"
CONFIG = b'{"width": 64}\n'
WEIGHTS = b"\x08\0\0\0\0\0\0\0{}      "
CARD = """---
library_name: pnc-hub
pipeline_tag: image-classification
language: en
license: mit
tags: [partial-network-cloning]
datasets: [cifar100]
base_model: bob/teacher
base_model_relation: adapter
---
# A model
"""


@pytest.fixture
def own_hub() -> Iterator[LoopbackHub]:
    """A Hub that no other test knows."""
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def alice(own_hub: LoopbackHub) -> HfApi:
    """The client of `alice`, who belongs to `lab` and owns one empty repository."""
    alice = client(own_hub, "alice", orgs=["lab"])
    alice.create_repo(REPO)
    return alice


def client(hub: LoopbackHub, name: str, **options: Any) -> HfApi:
    """The client of a new user."""
    return HfApi(endpoint=hub.endpoint, token=hub.add_user(name, **options))


def put(api: HfApi, files: dict[str, bytes], repo_id: str = REPO, **options: Any) -> CommitInfo:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="add files", **options)


class Answer(NamedTuple):
    status: int
    headers: Message
    content: bytes


def send(method: str, url: str, *, headers: dict[str, str] | None = None, body: Any = None) -> Answer:
    """Send one request without huggingface_hub; redirects are not followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    connection.request(method, parts.path, body=body, headers=headers or {}, encode_chunked=True)
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read())
    connection.close()
    return answer


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def run_client(hub: LoopbackHub, code: str, home: Path, **environment: str) -> Any:
    """Run code in a process that knows no other Hub, and return what it assigns to `result`.

    The code finds the client of the user whose token is `TOKEN` as `api`, `CommitOperationAdd` and a few modules.
    """
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    imports = "import json, os, pathlib\nfrom huggingface_hub import CommitOperationAdd, HfApi\n"
    prologue = f"{imports}api = HfApi(token=os.environ.get('TOKEN'))\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{prologue}{code}\nprint(json.dumps(result))"],
        env={**inherited, **own, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

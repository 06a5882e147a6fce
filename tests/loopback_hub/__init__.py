"""A small Hugging Face Hub on loopback, for tests that run the real huggingface_hub client.

It keeps model repositories in memory and speaks the part of the Hub's HTTP interface that publishing,
reading, searching and downloading need. Large files are served by a second listener under another host name,
as the real Hub serves them from a CDN, and that listener refuses any request that carries a token.

Example:
    >>> from huggingface_hub import HfApi
    >>> with LoopbackHub() as hub:
    ...     token = hub.add_user("alice")
    ...     HfApi(endpoint=hub.endpoint, token=token).create_repo("alice/resnet").repo_id
    'alice/resnet'
"""

from .hub import LoopbackHub
from .traffic import Fault, RequestRecord

__all__ = ["Fault", "LoopbackHub", "RequestRecord"]

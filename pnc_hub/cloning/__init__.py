"""The learning side: from a source, a target and images to a ``Clone``. Needs ``pip install 'pnc-hub[clone]'``."""

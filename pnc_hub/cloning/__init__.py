"""The learning side: from a source, a target and images to a ``Clone``. Needs ``pip install 'pnc-hub[clone]'``."""

from importlib.util import find_spec

_MISSING = [name for name in ("matplotlib", "sklearn", "torch_pruning") if find_spec(name) is None]
if _MISSING:
    raise ModuleNotFoundError(
        f"learning a clone needs {', '.join(_MISSING)}, which attaching one does not: pip install 'pnc-hub[clone]'",
        name=_MISSING[0],
    )

from pnc_hub.cloning.learn import clone  # noqa: E402

__all__ = ["clone"]

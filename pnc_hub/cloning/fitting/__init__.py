"""What is fitted: adapters in closed form, gates, and the refinement. All that learns or measures begins here."""

from importlib.util import find_spec

_MISSING = [name for name in ("matplotlib", "sklearn", "torch_pruning") if find_spec(name) is None]
if _MISSING:
    raise ModuleNotFoundError(
        f"learning a clone needs {', '.join(_MISSING)}, which attaching one does not: pip install 'pnc-hub[clone]'",
        name=_MISSING[0],
    )

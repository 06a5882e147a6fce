"""Rehearsals: every step of a recipe is done once, as small as can be; what it prints is of no account."""

OPTION = "one pass of every training and few rows: do all steps work?"
_on = False


def begin() -> None:
    """From now on."""
    global _on
    _on = True


def on() -> bool:
    """Whether this is one; nothing is remembered then."""
    return _on


def passes(wanted: int) -> int:
    """How many passes a training makes that would make ``wanted``."""
    return min(wanted, 1) if _on else wanted


def few(what: list | tuple, most: int = 1) -> list | tuple:
    """``what``, in a rehearsal the first of it."""
    return what[:most] if _on else what

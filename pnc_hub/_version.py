"""The version of this package; ``pnc_hub.__version__`` is the same."""

__version__ = "0.1.0.dev0"

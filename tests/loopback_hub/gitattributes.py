"""Which files are large, and which are not wanted: git's own files of patterns and the Hub's rules."""

from fnmatch import fnmatch

LARGE_FILE_BYTES = 10 * 1000 * 1000

_LARGE_FILE_PATTERNS = (
    "*.7z",
    "*.arrow",
    "*.bin",
    "*.bz2",
    "*.ckpt",
    "*.ftz",
    "*.gz",
    "*.h5",
    "*.joblib",
    "*.lfs.*",
    "*.mlmodel",
    "*.model",
    "*.msgpack",
    "*.npy",
    "*.npz",
    "*.onnx",
    "*.ot",
    "*.parquet",
    "*.pb",
    "*.pickle",
    "*.pkl",
    "*.pt",
    "*.pth",
    "*.rar",
    "*.safetensors",
    "*.tar.*",
    "*.tar",
    "*.tflite",
    "*.tgz",
    "*.wasm",
    "*.xz",
    "*.zip",
    "*.zst",
    "*tfevents*",
)

_TRACKED_WITH_LFS = "filter=lfs diff=lfs merge=lfs -text"

DEFAULT_GITATTRIBUTES = "".join(f"{pattern} {_TRACKED_WITH_LFS}\n" for pattern in _LARGE_FILE_PATTERNS)


def is_large(path: str, *, size: int, sample: bytes, gitattributes: str) -> bool:
    """Whether the Hub wants a file through LFS.

    Args:
        path: Path in the repository.
        size: Size of the file.
        sample: Its first bytes.
        gitattributes: Content of the repository's `.gitattributes`.
    """
    return size > LARGE_FILE_BYTES or b"\0" in sample or _is_listed(path, gitattributes)


def is_ignored(path: str, gitignore: str) -> bool:
    """Whether a `.gitignore` names a file or one of the folders it is in, by a plain pattern."""
    parts = path.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    patterns = [line.strip().strip("/") for line in gitignore.splitlines() if line.strip() and line[0] not in "#!"]
    return any(fnmatch(subject, pattern) for pattern in patterns for subject in [*parts, *above])


def _is_listed(path: str, gitattributes: str) -> bool:
    for line in gitattributes.splitlines():
        pattern, *attributes = line.split() or [""]
        subject = path if "/" in pattern else path.rsplit("/", 1)[-1]
        if "filter=lfs" in attributes and fnmatch(subject, pattern):
            return True
    return False

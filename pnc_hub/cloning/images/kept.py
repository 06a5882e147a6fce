"""What was read or computed once for an image: kept in memory up to a bound, beyond it in a temporary file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Hashable, Sequence
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

MEMORY, DISK = 1 << 30, 16 << 30  # bytes that are kept in memory, and beyond them in the file
PICTURE = "picture"  # the name of pixels
SEGMENT = 1 << 26  # bytes by which the file grows
ALIGNED = 64


class Kept:
    """Rows by name and image. What there is no room for is not kept, and has to be made anew when it is asked for.

    The file has no name from the moment it is made, so that nothing is left of it however the process ends.

    Example:
        >>> kept = Kept()
        >>> kept.put("logits", ["first", "second"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        True
        >>> kept.get("logits", "second"), kept.get("logits", "third")
        (tensor([3., 4.]), None)
    """

    def __init__(self, memory: int = MEMORY, disk: int = DISK) -> None:
        """Nothing is kept yet; ``memory`` and ``disk`` are bounds in bytes."""
        self._memory, self._disk = memory, disk
        self._rows: dict[tuple[Hashable, Hashable], Tensor] = {}
        self._file: IO[bytes] | None = None
        self._size = 0  # of the file
        self._segment: Any = np.empty(0, np.uint8)  # what is left of the last one

    def __getstate__(self) -> dict[str, Any]:
        """A process that loads images is told which are there, no more."""
        return {"_rows": {key: None for key in self._rows if key[0] == PICTURE}}

    def has(self, name: Hashable, key: Hashable) -> bool:
        """Whether there is such a row."""
        return (name, key) in self._rows

    def get(self, name: Hashable, key: Hashable) -> Tensor | None:
        """The row of that name and image, if it was kept."""
        return self._rows.get((name, key))

    def put(self, name: Hashable, keys: Sequence[Hashable], rows: Tensor) -> bool:
        """Keep ``rows`` [len(keys), ...], on the CPU, each once; False where there is no room for them."""
        new = {key: row for row, key in enumerate(keys) if not self.has(name, key)}
        if not new:
            return True
        block = self._placed((rows if len(new) == len(keys) else rows[list(new.values())]).detach().cpu())
        if block is not None:
            self._rows.update(zip(((name, key) for key in new), block, strict=True))
        return block is not None

    def _placed(self, rows: Tensor) -> Tensor | None:
        """A copy where there is room for one."""
        if rows.nbytes <= self._memory:
            self._memory -= rows.nbytes
            return torch.empty_like(rows, memory_format=torch.contiguous_format).copy_(rows)
        size = -(-rows.nbytes // ALIGNED) * ALIGNED
        if size > len(self._segment) and not self._grow(max(size, SEGMENT)):
            return None
        room, self._segment = self._segment[: rows.nbytes], self._segment[size:]
        return torch.from_numpy(room).view(rows.dtype).view(rows.shape).copy_(rows)

    def _grow(self, size: int) -> bool:
        """Add a segment to the file; False where the bound or the disk does not allow it."""
        if size > self._disk:
            return False
        try:
            self._file = self._file or tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (it lives as long as this object)
            self._file.seek(self._size)
            # as much is left to others; and a file with holes would end the process where the disk is full
            if size > shutil.disk_usage(tempfile.gettempdir()).free // 2 or self._file.write(bytes(size)) < size:
                raise OSError
            self._segment = np.memmap(self._file, np.uint8, "r+", self._size, (size,))
        except OSError:
            self._disk = 0
            if self._file is not None:
                self._file.truncate(self._size)
            return False
        self._disk, self._size = self._disk - size, self._size + size
        return True

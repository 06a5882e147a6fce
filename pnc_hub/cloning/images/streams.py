"""Images that can only be read one after the other: a bounded sample of each class, drawn in one pass.

Learning splits its images by index and reads them again and again; a WebDataset or another stream allows neither. No step
of learning needs many images of one class, so a sample is kept in memory, encoded.
"""

from __future__ import annotations

import io
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pnc_hub.errors import ImageError

logger = logging.getLogger(__name__)

MAX_STREAMED = 500  # images that are kept of each class
MAX_BYTES = 2 << 30  # of all of them together, encoded; fewer of each class are kept where that is not enough


class Streamed(Dataset[Any]):
    """At most ``MAX_STREAMED`` images of each class of a stream, and at most ``MAX_BYTES`` in all, whatever its length.

    Each class is sampled evenly from the whole stream (reservoir sampling, Vitter 1985). Where the images of all classes
    need too many bytes, every class is thinned to half as many.

    Attributes:
        targets: their labels.
        classes: names of the labels where they are known, or None.
        seen: how many images the stream had.

    Example:
        >>> import torch
        >>> kept = Streamed(((torch.zeros(3, 8, 8), number % 2) for number in range(2000)), seed=0)
        >>> len(kept), kept.seen
        (1000, 2000)
    """

    def __init__(self, stream: Iterable[Any], seed: int) -> None:
        """Read ``stream`` of (image, label) once; it must end."""
        self.classes: list[str] | None = None
        self.seen = 0
        kept = _Reservoirs(random.Random(seed))
        for item in stream:
            if not isinstance(item, (tuple, list)) or len(item) < 2:
                raise ImageError(f"a stream gives pairs of (image, label), received a {type(item).__name__}")
            kept.offer(item[0], int(item[1]))
            self.seen += 1
        self._images = [image for label in sorted(kept.images) for image in kept.images[label]]
        self.targets = [label for label in sorted(kept.images) for _ in kept.images[label]]
        logger.log(
            logging.WARNING if len(self) < self.seen else logging.INFO,
            "%d of the stream's %d images were drawn: at most %d of each of %d classes",
            *(len(self), self.seen, kept.most, len(kept.images)),
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self._images[index]
        return (Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image), self.targets[index]


class _Reservoirs:
    """For each label a sample of the images offered so far."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.most, self.bytes = rng, MAX_STREAMED, 0
        self.images: dict[int, list[Any]] = defaultdict(list)
        self.seen: Counter[int] = Counter()

    def offer(self, image: Any, label: int) -> None:
        """Keep the image with probability (how many are kept) / (how many of its label were seen), for another one."""
        kept = self.images[label]
        self.seen[label] += 1
        position = self.rng.randrange(self.seen[label])
        if position >= self.most:
            return
        stored = _stored(image)
        self.bytes += _size(stored)
        if len(kept) < self.most:
            kept.append(stored)
        else:
            self.bytes -= _size(kept[position])
            kept[position] = stored
        while self.bytes > MAX_BYTES and self.most > 1:
            self.most //= 2
            self.images |= {
                label: self.rng.sample(kept, min(self.most, len(kept))) for label, kept in self.images.items()
            }
            self.bytes = sum(_size(stored) for kept in self.images.values() for stored in kept)


def _stored(image: Any) -> Any:
    """Without loss: a picture as PNG, a tensor on its own (a view would keep what it is a view of)."""
    if isinstance(image, Tensor):
        return image.clone()
    if not isinstance(image, Image.Image):
        raise ImageError(f"an image is a PIL image or a tensor, found {type(image).__name__}")
    if image.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):
        image = image.convert("RGB")  # PNG has no other modes
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _size(stored: Any) -> int:
    return len(stored) if isinstance(stored, bytes) else stored.numel() * stored.element_size()

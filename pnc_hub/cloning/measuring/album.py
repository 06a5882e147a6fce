"""A few of the held-out images whose answer a clone changed, kept small while they pass by."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn

from pnc_hub.cloning.images.data import class_names
from pnc_hub.models import labels as names_of_models
from pnc_hub.models.classifier import as_classifier
from pnc_hub.models.preprocess import Preprocess
from pnc_hub.report.page import KINDS, ShownPhoto

MOST, MOST_OF_A_CLASS = 8, 2  # of each kind, in each process until they are put together
SIDE = 112  # pixels


class Album:
    """Collects photos of what happened, at most ``MOST`` of each kind and few of one class."""

    def __init__(self, preprocess: Preprocess, old_names: Sequence[str] | None, new_names: Sequence[str]) -> None:
        """Images come as inputs of a target with ``preprocess``; ``old_names`` are its classes, where they are known."""
        self.preprocess, self.old_names, self.new_names = preprocess, old_names, new_names
        self._photos: list[tuple[int, ShownPhoto]] = []
        self._seen: Counter[tuple[str, int]] = Counter()
        self._batches = 0

    def see(self, images: Tensor, labels: Tensor, logits: Tensor, width: int, new: bool) -> None:
        """Look at a batch: ``logits`` [B, T + K] with the clone attached; the first ``width`` are those of the target alone."""
        before, after = logits[:, :width].softmax(1).max(1), logits.softmax(1).max(1)
        columns = [column.tolist() for column in (labels, before.indices, before.values, after.indices, after.values)]
        for row, (label, was, sure, now, surer) in enumerate(zip(*columns, strict=True)):
            kind = _kind(label, now - width, new)
            if kind is None or not self._wants(kind, label if new else was):
                continue
            shows = self.new_names[label] if new else self._old(label)
            answer = self.new_names[now - width] if now >= width else str(self._old(now))
            photo = ShownPhoto(kind, self._picture(images[row]), shows, (str(self._old(was)), sure), (answer, surer))
            self._photos.append((self._batches, photo))
        self._batches += 1

    def photos(self) -> tuple[ShownPhoto, ...]:
        """What all processes have collected; the same in each."""
        collected = sorted(gather_object(list(self._photos)), key=lambda item: item[0])
        return tuple(photo for kind in KINDS for photo in [one for _, one in collected if one.kind == kind][:MOST])

    def _wants(self, kind: str, label: int) -> bool:
        of_kind = sum(count for (other, _), count in self._seen.items() if other == kind)
        if of_kind >= MOST or self._seen[kind, label] >= MOST_OF_A_CLASS:
            return False
        self._seen[kind, label] += 1
        return True

    def _old(self, index: int) -> str | None:
        if index < 0:
            return None
        return self.old_names[index] if self.old_names else f"class {index}"

    def _picture(self, image: Tensor) -> bytes:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.preprocess.mean, self.preprocess.std))
        pixels = ((image.float().cpu() * std + mean).nan_to_num().clamp(0, 1) * 255).round().byte()
        shown = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
        picture = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())
        small = max(picture.size) <= SIDE // 2
        picture.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        picture.save(file, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
        return file.getvalue()


def class_names_of(target: nn.Module, shown: Any) -> list[str] | None:
    """What the target's classes are called, by itself or by the folders of its images."""
    count = int(as_classifier(target).num_classes)
    own = names_of_models.class_names(target, count)
    if own is not None:
        return [names_of_models.spoken(names) for names in own]
    names = None if shown is None else class_names(shown)
    return names if names is not None and len(names) == count else None


def _kind(label: int, answer: int, new: bool) -> str | None:
    """What happened to an image; ``answer`` is a position among the cloned classes, or below 0."""
    if not new:
        return "diverted" if answer >= 0 else None
    return "missed" if answer < 0 else "recognised" if answer == label else "mixed"

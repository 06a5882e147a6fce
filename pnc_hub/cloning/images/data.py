"""Images for learning a clone: folders, timm data sets or torch datasets, brought to (tensor, label) pairs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_transform
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from pnc_hub.cloning.images.files import ImageFolder
from pnc_hub.cloning.images.streams import Streamed
from pnc_hub.errors import DataError, ImageError, PncHubError
from pnc_hub.models.preprocess import Preprocess, upright

UNLABELLED = -1
# Names that timm.data.create_dataset opens, and what has to be installed for them.
READERS: dict[str, tuple[str, ...]] = {
    "hfds": ("datasets",),
    "hfids": ("datasets",),
    "tfds": ("tensorflow", "tensorflow_datasets"),
    "torch": (),
    "wds": ("webdataset",),
}


_numbers = itertools.count()


class Images(Dataset[Any]):
    """Images of some classes of ``dataset``, transformed for ``preprocess``, with labels of our own numbering."""

    def __init__(self, dataset: Any, preprocess: Preprocess, relabel: Mapping[int, int] | None) -> None:
        """``relabel`` maps a label of ``dataset`` to ours; images of other labels are left out. None: all, unlabelled."""
        self.dataset, self.preprocess = dataset, preprocess
        self._number = next(_numbers)  # the same in a copy, in another process as well
        given = [UNLABELLED] * len(dataset) if relabel is None else labels_of(dataset)
        relabel = {UNLABELLED: UNLABELLED} if relabel is None else relabel
        self.indices = [index for index, label in enumerate(given) if label in relabel]
        if isinstance(dataset, ImageFolder):
            self.indices = dataset.readable(self.indices)
        self.labels = [relabel[given[index]] for index in self.indices]
        wanted = ("input_size", "interpolation", "crop_pct")
        # without mean and deviation, so that an image can be kept as bytes
        self.transform = create_transform(**{name: getattr(preprocess, name) for name in wanted}, normalize=False)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.normalised(self.stored(position)), self.labels[position]

    def only(self, positions: Sequence[int], labels: list[int] | None = None) -> Images:
        """Those at ``positions``, with these labels or those that they have."""
        some = copy.copy(self)
        some.indices = [self.indices[position] for position in positions]
        some.labels = [self.labels[position] for position in positions] if labels is None else labels
        return some

    def key(self, position: int) -> tuple[int, int]:
        """Which image of which data set it is: that of ``only`` is the same, in every process."""
        return self._number, self.indices[position]

    def normalised(self, stored: Tensor) -> Tensor:
        """[C, H, W] as the target takes it, from what ``stored`` gave."""
        if stored.is_floating_point():
            return stored
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.preprocess.mean, self.preprocess.std))
        return stored.float().div_(255).sub_(mean).div_(std)

    def stored(self, position: int) -> Tensor:
        """The image, decoded, in the target's size: a picture as bytes [C, H, W], a tensor as it is."""
        item = self.dataset[self.indices[position]]
        image = item[0] if isinstance(item, (tuple, list)) else item
        if isinstance(image, Tensor):
            if not image.is_floating_point() or tuple(image.shape) != self.preprocess.input_size:
                raise ImageError(
                    f"tensor images are taken as the target's inputs: floats of shape {list(self.preprocess.input_size)};"
                    f" found {image.dtype} {list(image.shape)}. Give PIL images to have them transformed."
                )
            return image
        if not hasattr(image, "convert"):
            raise ImageError(f"an image is a PIL image or a tensor, found {type(image).__name__}")
        transformed: Tensor = self.transform(upright(image, self.preprocess.input_size[0]))
        return transformed


def open_dataset(data: Any, seed: int = 0) -> Any:
    """Images from wherever they are, as a dataset of (image, label) that can be read by index.

    Args:
        data: one of

            1. a folder with a folder of images per class;
            2. a tar file with a folder of images per class, or a folder of tar files, one per class;
            3. a name that ``timm.data.create_dataset`` opens, of which the split ``train`` is read: ``hfds/user/name``,
               ``hfids/user/name``, ``tfds/name``, ``torch/name``, ``wds/folder`` or ``wds/folder/{0000..0099}.tar``;
            4. a dataset of ``timm.data`` or torch, for other splits or labels.
        seed: of the sample that is drawn from a stream (``hfids``, ``tfds``, ``wds`` or a torch ``IterableDataset``), see
            ``pnc_hub.cloning.images.streams``. Every one of several processes reads the whole stream, and it must give the same
            images in the same order to each.

    Raises:
        DataError: it is none of these, or cannot be read, or a package for it is missing.
    """
    name = str(data) if isinstance(data, (str, Path)) else None
    if name is not None:
        data = _failing(f"no images could be read from {name!r}", _opened, name)
    if isinstance(data, IterableDataset):
        reader: Any = getattr(data, "reader", None)
        if hasattr(reader, "dist_num_replicas"):  # timm's read the share of their process; here each reads all
            reader.dist_rank, reader.dist_num_replicas = 0, 1
            reader.global_num_workers = getattr(reader, "num_workers", 1)
        what = "the stream" if name is None else repr(name)
        return _failing(f"no images could be read from {what}", _sampled, data, seed)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return data
    raise DataError(
        "images come as a folder of class folders, a tar file, a timm.data.create_dataset name, or a dataset of (image, label);"
        f" received a {type(data).__name__}"
    )


def _failing(what: str, read: Any, *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except PncHubError:
        raise
    except Exception as error:  # readers of every kind and origin stand behind these calls
        raise DataError(f"{what} ({type(error).__name__}: {error})") from error


def _opened(name: str) -> Any:
    path = Path(name)
    if path.is_dir() or (path.is_file() and path.suffix == ".tar"):
        return ImageFolder(name)
    kind, _, rest = name.partition("/")
    if kind.lower() not in READERS or not rest:
        raise DataError(
            f"{name!r} is no folder. Valid are: 1. a folder with a folder of images per class; 2. a tar file of such, or a"
            f" folder of tar files; 3. a name that timm.data.create_dataset opens ({'/, '.join(READERS)}/...); 4. a dataset of"
            " (image, label)"
        )
    missing = [package for package in READERS[kind.lower()] if find_spec(package) is None]
    if missing:
        raise DataError(f"{name!r} is read with {' and '.join(missing)}: pip install {' '.join(missing)}")
    if kind.lower() == "wds":
        root, _, shards = rest.rpartition("/")
        root, split = (root, shards) if ".tar" in shards else (rest, "train")
        return create_dataset("wds/", root=root, split=split)
    if kind.lower() == "torch":
        return create_dataset(name, root="", split="train")
    # streams are read to their end, so that it does not matter that their length may be unknown
    length: dict[str, Any] = {"num_samples": 1} if kind.lower() == "hfids" else {}
    return create_dataset(name, split="train", **length)


def _sampled(stream: IterableDataset[Any], seed: int) -> Streamed:
    sample = Streamed(stream, seed)
    reader = getattr(stream, "reader", None)
    features = getattr(getattr(reader, "ds", None), "features", None) or {}  # hfids may know them only now
    label = features.get(getattr(reader, "target_key", "label"))
    sample.classes = class_names(stream) or getattr(label, "names", None)
    return sample


def class_names(dataset: Any) -> list[str] | None:
    """Names of the labels 0, 1, ... of ``dataset``, or None where it has none."""
    owners = (getattr(dataset, "reader", None), dataset)
    recorded = (getattr(owner, name, None) for owner in owners for name in ("class_to_idx", "class_name_to_idx"))
    to_index = next(filter(None, recorded), None)
    if to_index:
        return [str(name) for name, _ in sorted(to_index.items(), key=lambda item: item[1])]
    names = getattr(dataset, "classes", None)
    return [str(name) for name in names] if names is not None else None


def labels_of(dataset: Any) -> list[int]:
    """Label of every image, without reading the images if the dataset allows it."""
    reader: Any = getattr(dataset, "reader", None)
    targets: Any = getattr(dataset, "targets", None)
    if hasattr(reader, "iter_targets"):  # Hugging Face datasets: the column
        targets = _failing("the labels could not be read", list, reader.iter_targets())
    elif hasattr(reader, "targets"):  # tar files
        targets = reader.targets
    elif hasattr(reader, "samples"):  # folders
        targets = (sample[1] for sample in reader.samples)
    elif targets is None and isinstance(dataset, torch.utils.data.TensorDataset):
        targets = dataset.tensors[1]
    if targets is None:
        targets = (dataset[index][1] for index in range(len(dataset)))
    renumber = getattr(dataset, "target_transform", None) if reader is not None else None
    return [int(renumber(label) if renumber else label) for label in targets]

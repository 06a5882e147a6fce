"""C: insertion points and cuts that are no modules, other modules, or none that can serve."""

import copy

import pytest
import torch
from common import images, slow, tiny_clone, tiny_model
from torch import nn

import pnc_hub
from hostile.harness import by_number, change, put, read_config, refused, sealed, untouched, without, write_config
from pnc_hub.artifact.files import CONFIG
from pnc_hub.errors import ClassCollisionError, FingerprintMismatchError, InsertionPointError, PncHubError, TargetError
from pnc_hub.models.fingerprint import fingerprint

NOT_PATHS = {
    **{f"C67-{name}": name for name in ("__class__", "0.__class__", "__dict__", "_modules", "forward", "training", "weight")},
    "C67-__init__.__globals__": "__class__.__init__.__globals__",
    **{f"C68-{name!r}": name for name in ("", ".", "a..b", ".a", "a.", "layer2 ", " layer2", "layer2.0\n", "layer2\t0")},
    "C69-missing": "layer9",
    "C70-parameter": "layer1.0.conv1.weight",
    **{f"C71-{name}": name for name in ("*", "(a+)+$", ".*", "layer[12]", "layer?", "^layer1$", "a" * 27 + "!")},
    "C72-100000 parts": ".".join("a" * 10**5),
    "C72-10^5 letters": "a" * 10**5,
    "C76-Arabic digit": "layer2.\u0660",
    "C76-full-width digit": "layer2.\uff10",
    "C76-letter that looks Latin": "l\u0430yer2.0",
}  # fmt: skip


@by_number(NOT_PATHS, "name")
def test_cuts_that_are_none(clone_folder, target, name):
    change(clone_folder, "cut", name)
    refused(target, clone_folder, file=CONFIG)


@by_number(NOT_PATHS, "name")
def test_insertion_points_that_are_none(clone_folder, target, name):
    """Those of the form of a path are looked for in the target, where there is none of that name."""
    config = read_config(clone_folder)
    write_config(clone_folder, put(without(config, 1), "adapters/0/insertion/name", name))
    refused(target, clone_folder, PncHubError)


def reading(target: nn.Module, folder, module: str, **insertion) -> None:
    """Have the first adapter, the only one left, read ``module`` of ``target``, whose weights before it are as recorded."""
    config = without(read_config(folder), 1)
    adapter = config["adapters"][0]
    adapter["insertion"].update(name=module, **insertion)
    adapter["target"].update(trunk=["conv_stem"], fingerprint=fingerprint(target, ["conv_stem"]))
    write_config(folder, sealed(config))


@pytest.mark.parametrize(
    ("module", "insertion"),
    [
        pytest.param("classifier", {}, id="C70-behind the logits"),
        pytest.param("blocks.3", {"channels": 3}, id="C69-other channels"),
        pytest.param("blocks.0", {}, id="C69-another block"),
        pytest.param("blocks.3", {"layout": "NHWC"}, id="C69-another layout"),
        pytest.param("blocks.3", {"layout": "NLC", "grid": [2, 2]}, id="C69-tokens"),
        pytest.param("global_pool", {}, id="C69-a vector"),
        pytest.param("blocks.6.0.drop_path", {}, id="C69-never a map"),
    ],
)
def test_modules_that_are_not_what_is_said_of_them(clone_folder, target, module, insertion):
    """The clone may be attached: that costs no pass. The first pass says so, with an error of ours."""
    if module not in dict(target.named_modules()):
        module = "bn1"
    reading(target, clone_folder, module, **insertion)
    with untouched(target):
        try:
            with pytest.raises(PncHubError), pnc_hub.attach(target, clone_folder):
                target(images())
        finally:
            pnc_hub.detach(target)


@pytest.mark.parametrize(
    ("grid", "prefix_tokens"),
    [([2, 8], 1), ([4, 4], 0), *(slow(*case) for case in (([8, 2], 1), ([1, 16], 1), ([4, 4], 2)))],
    ids=str,
)
def test_c69_tokens_arranged_in_another_way(tmp_path, grid, prefix_tokens):
    """Sixteen tokens are a map of 4 x 4, and of 2 x 8 as well."""
    vit = tiny_model("vit")
    folder = tiny_clone(tiny_model("resnet"), vit, universal=False).save_pretrained(tmp_path / "clone")
    batch, alone = images(), vit(images())
    change(folder, "adapters/0/insertion/grid", grid)
    change(folder, "adapters/0/insertion/prefix_tokens", prefix_tokens)
    with untouched(vit):
        with pytest.raises(InsertionPointError), pnc_hub.attach(vit, folder):
            vit(batch)
        assert torch.equal(vit(batch), alone)


def test_c73_the_same_point_twice(clone_folder, target):
    with untouched(target), pnc_hub.attach(target, clone_folder) as first:
        refused_while_attached(target, clone_folder, ClassCollisionError)
        second = pnc_hub.attach(target, clone_folder, on_collision="allow")
        logits = target(images())
        assert torch.equal(logits[:, first.logit_slice], logits[:, second.logit_slice])
        second.detach()


def refused_while_attached(model, folder, kind) -> None:
    before = model(images())
    with pytest.raises(kind):
        pnc_hub.attach(model, folder)
    assert torch.equal(model(images()), before)


@pytest.mark.parametrize("inside", ["tail.layer3", *map(slow, ["adapter.map", "head", "_branch", "module.tail"])])
def test_c74_a_point_inside_an_attached_clone(clone_folder, saved_clone, target, inside):
    """The modules of a clone are none of the target's."""
    reading(target, clone_folder, inside)
    with untouched(target), pnc_hub.attach(target, saved_clone):
        refused_while_attached(target, clone_folder, FingerprintMismatchError)


class Twice(nn.Module):
    """One block called twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 7
        self.conv_stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.one = nn.Conv2d(8, 8, 3, 1, 1)
        self.two = self.one
        self.classifier = nn.Linear(8, 7)
        self.calls = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.two(self.one(self.conv_stem(images))).mean((2, 3)))


@pytest.mark.parametrize("name", ["one", "two"])
def test_c75_a_module_that_is_shared(clone_folder, name):
    """Under its first name it is read as it is called last; its second is none."""
    model = Twice().eval()
    point = {"channels": 8, "layout": "NCHW", "grid": [16, 16], "reduction": 2, "prefix_tokens": 0}
    reading(model, clone_folder, name, **point)
    refused(model, clone_folder, PncHubError)
    with torch.no_grad(), untouched(model):
        before = model(images())
        assert torch.equal(model(images()), before)


def test_c69_a_module_that_is_not_called(clone_folder, target):
    model = copy.deepcopy(target)
    model.spare = nn.Identity()
    reading(model, clone_folder, "spare")
    with untouched(model), pytest.raises(TargetError, match="without its hooks"), pnc_hub.attach(model, clone_folder):
        model(images())

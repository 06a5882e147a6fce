"""A slice of timm's registry, from as many model files as there is time for: each has points, and they are what they say.

``recipes/architectures/sweep.py`` is the same for the whole registry.
"""

import pytest
import timm
import torch

from pnc_hub.errors import InsertionPointError
from pnc_hub.models.insertion import INPUT, empty
from pnc_hub.models.skeleton import Skeleton
from recipes.architectures import sweep

ARCHITECTURES = (
    *("beit_base_patch16_224", "botnet26t_256", "bat_resnext26ts", "cait_xxs24_224", "coat_tiny", "convit_tiny"),
    *("convmixer_768_32", "convnext_atto", "cpubone_nano", "crossvit_9_240", "csatv2", "cs3darknet_s", "cspnext_tiny"),
    *("davit_tiny", "deepseek_vit_412m_enc", "deit_tiny_distilled_patch16_224", "densenet121", "dla34", "dpn48b"),
    *("edgenext_xx_small", "efficientformerv2_s0", "efficientvim_m1", "efficientvit_b0", "eva02_tiny_patch14_224"),
    *("fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "gemma4_vit_167m", "gemma4_vit_167m_enc"),
    *("ghostnet_050", "hiera_tiny_224", "hrnet_w18_small", "inception_next_atto", "levit_128s", "levit_conv_128s"),
    *(
        "mixer_s32_224",
        "mobilevit_xxs",
        "mvitv2_tiny",
        "naflexvit_base_patch16_gap",
        "nest_tiny",
        "pit_ti_distilled_224",
    ),
    *("pvt_v2_b0", "qwen3_vit_88m", "repvit_m0_9", "res2net50_14w_8s", "resnest14d", "sam2_hiera_tiny", "selecsls42"),
    *("swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_patch16_224", "twins_svt_small"),
    *("vgg11", "vit_relpos_small_patch16_224", "volo_d1_224", "xception41", "xcit_nano_12_p16_224", "tresnet_m"),
)
# Two branches lead from the image to the logits, or every block is given something of the image that was taken before.
READ_ONLY = {"crossvit_9_240", "gemma4_vit_167m_enc"}
# Small enough to run on images of 64 pixels, with these arguments.
RUN = {
    **{
        key: {} for key in ("cpubone_nano", "dla34", "efficientvim_m1", "ghostnet_050", "hrnet_w18_small", "selecsls42")
    },
    **{key: {} for key in ("mvitv2_tiny", "resnest14d", "xcit_nano_12_p16_224")},
    **{key: {"img_size": 64} for key in ("coat_tiny", "levit_128s", "tnt_s_patch16_224", "twins_svt_small")},
    **{"hiera_tiny_224": {"img_size": (64, 64)}, "pit_ti_distilled_224": {"img_size": 64}},
    **{"crossvit_9_240": {"img_size": 240}, "volo_d1_224": {"img_size": 64}},
}


# Of these the quick run looks at: one of each way in which tracing, cutting or tokens are special.
QUICK = {
    *("convnext_atto", "crossvit_9_240", "densenet121", "gemma4_vit_167m_enc", "hiera_tiny_224", "levit_128s"),
    *("mvitv2_tiny", "swin_tiny_patch4_window7_224"),
}


def some_slow(names):
    """Parameters of a test, those that are not ``QUICK`` marked as slow."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def test_the_slice_is_wide():
    assert len(set(ARCHITECTURES)) == 60
    assert len({timm.models.model_entrypoint(name).__module__ for name in ARCHITECTURES}) >= 55


def outputs_of(model, names, images):
    """The model's output, and what its modules called ``names`` return on the way."""
    found, handles = {}, []
    for name in names:

        def keep(_module, _args, output, name=name):
            assert name not in found  # called once
            found[name] = output.clone()

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        with torch.no_grad():
            return model(images), found
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("architecture", some_slow(ARCHITECTURES))
def test_points(architecture):
    with torch.device("meta"):
        model = timm.create_model(architecture).eval()
    skeleton = Skeleton(model)
    interior = [point for name, point in skeleton.points.items() if name != INPUT]
    assert interior
    _, found = outputs_of(model, skeleton.points.keys() - {INPUT}, torch.empty(2, *skeleton.input_size, device="meta"))
    shapes = {point.name: empty(point, batch=2, device="meta").shape for point in interior}
    assert {name: feature.shape for name, feature in found.items()} == shapes
    middle = interior[len(interior) // 2].name
    tensors = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    assert skeleton.trunk_names(middle)
    assert set(skeleton.trunk_names(middle)) <= {*tensors, *(name for name, _ in model.named_modules())}
    if architecture in READ_ONLY:
        with pytest.raises(InsertionPointError, match="cannot be cut"):
            skeleton.tail(model, middle)
    else:
        skeleton.tail(model, middle)


@pytest.fixture(scope="module")
def clones():
    return sweep.Clones()


@pytest.mark.filterwarnings("ignore:.*the clone was made for", "ignore:.*it is attached at the input")
@pytest.mark.parametrize("architecture", some_slow(ARCHITECTURES))
def test_clones_attach_at_the_input_and_inside(architecture, clones):
    small = 35e6 if architecture in RUN else 0  # parameters up to which it is run in numbers, too
    row = sweep.measure(architecture, clones, small, 60)
    assert row["reason"] is None
    assert row["meta"] == ("no classifier" if architecture.endswith("_enc") else "ok")
    assert row["real"] == ("ok" if small else row["real"])


@pytest.mark.parametrize("architecture", some_slow(RUN))
def test_trunk_and_tail_are_the_model_in_numbers(architecture):
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=3, **RUN[architecture]).eval()
    side = 240 if architecture == "crossvit_9_240" else 64
    skeleton = Skeleton(model, (3, side, side))
    names = [name for name in skeleton.points if name != INPUT]
    for layer in model.modules():  # many start at zero
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=0.1)
    for batch, name in ((1, names[len(names) // 2]), (3, names[0]), (3, names[-1])):
        images = torch.randn(batch, 3, side, side)
        expected, found = outputs_of(model, [name], images)
        with torch.no_grad():
            assert torch.equal(skeleton.trunk(model, name)(images), found[name]), name
            if architecture not in READ_ONLY:
                assert torch.equal(skeleton.tail(model, name)(found[name]), expected), name

"""Measuring: every number checked on networks that say what the test wants."""

import math

import pytest
import torch
from common import images, tiny_clone, tiny_model
from conftest import what_it_is

from pnc_hub import attachment
from pnc_hub.cloning.measuring.album import Album
from pnc_hub.cloning.measuring.evaluate import _digest, accuracy, gather, measure, observe
from pnc_hub.cloning.networks import Reader
from pnc_hub.models.preprocess import Preprocess
from pnc_hub.report.series import Confusion, Histogram, Reliability


def batches(inputs, labels):
    return list(zip(inputs.split(3), torch.as_tensor(labels).split(3), strict=True))


@pytest.fixture(scope="module")
def joined():
    """A target and a clone for it, whose gate lets half of the images through, and what they say of 12 images."""
    source, target = tiny_model("resnet", seed=1), tiny_model("convnext")
    clone, inputs = tiny_clone(source, target), images(12, 3)
    gate = clone.tensors[clone.config.adapters[0].file]["gate.offset"]
    with torch.inference_mode(), attachment.attach(target, clone):
        logits = target(inputs)
    odds = logits[:, 7:].amax(1) - logits[:, :7].amax(1)
    gate += odds.median() + 1e-3
    with torch.inference_mode(), attachment.attach(target, clone):
        logits = target(inputs)
    assert 0 < int((logits.argmax(1) >= 7).sum()) < 12
    return target, clone, inputs, logits


def test_every_number_is_what_its_name_says(joined):
    target, clone, inputs, logits = joined
    new, old = slice(0, 6), slice(6, 12)
    joint, alone = logits.argmax(1), logits[:, :7].argmax(1)
    new_labels, old_labels = [0, 1, 2, 0, 1, 2], alone[old].clone()
    old_labels[0] = (old_labels[0] + 1) % 7  # one mistake of the target's own
    found = measure(target, clone, batches(inputs[new], new_labels), batches(inputs[old], old_labels))

    p = logits.double().softmax(1)
    gate = p[:, 7:].sum(1)
    pairs = [(a > b) + 0.5 * (a == b) for a in gate[new].tolist() for b in gate[old].tolist()]
    ori = sum(int(joint[6 + k]) == int(old_labels[k]) for k in range(6)) / 6
    tar = sum(int(joint[k]) == 7 + new_labels[k] for k in range(6)) / 6
    true = torch.cat([torch.tensor(new_labels) + 7, old_labels])
    assert found == {
        "tar": pytest.approx(tar),
        "ori": pytest.approx(ori),
        "avg_u": pytest.approx((ori + tar) / 2),
        "avg": pytest.approx((7 * ori + 3 * tar) / 10),
        "diverted": pytest.approx(sum(int(j) >= 7 for j in joint[old]) / 6),
        "auroc": pytest.approx(sum(pairs) / 36),
        "kl": pytest.approx(sum(-math.log(1 - g) for g in gate[old].tolist()) / 6, rel=1e-4),
        "target_alone": pytest.approx(5 / 6),
        "missed": pytest.approx(sum(int(j) < 7 for j in joint[new]) / 6),
        "ece": pytest.approx(calibration_error(p, true)),
        "ece_alone": pytest.approx(calibration_error(logits[old, :7].double().softmax(1), old_labels)),
        "restored": True,
    }


def calibration_error(p, labels):
    """Guo et al. (2017): the gap of accuracy and confidence in each of 15 bins, weighted by its share of the images."""
    confidence, answer = p.max(1)
    bins = (confidence * 15).long().clamp(max=14)
    right = (answer == labels).double()
    gaps = [(right[bins == k].mean() - confidence[bins == k].mean()).abs() * (bins == k).sum() for k in bins.unique()]
    return float(sum(gaps)) / len(labels)


def test_what_figures_are_drawn_of_agrees_with_the_shares(joined):
    target, clone, inputs, logits = joined
    observed = observe(
        target, clone, batches(inputs[:6], [0, 1, 2, 0, 1, 2]), batches(inputs[6:], logits[6:, :7].argmax(1))
    )
    shares, series = observed.shares(), observed.series()
    histogram, confusion = Histogram.of(series), Confusion.of(shares, series, 3)
    half = (histogram.edges[1] - histogram.edges[0]) / 2
    right = [place for place, low in enumerate(histogram.edges[:-1]) if low > -half]
    assert sum(histogram.new) == sum(histogram.old) == 6
    assert sum(histogram.new[place] for place in right) / 6 == pytest.approx(1 - shares["missed"])
    assert sum(histogram.old[place] for place in right) / 6 == pytest.approx(shares["diverted"])
    assert sum(row.right for _, row in confusion.classes) / 3 == pytest.approx(shares["tar"])
    assert sum(count for *_, count in confusion.new_to_old) / 6 == pytest.approx(shares["missed"])
    assert sum(count for *_, count in confusion.old_to_new) / 6 == pytest.approx(shares["diverted"])
    bins = Reliability.of(series, shares["ece"]).bins
    assert sum(images * right for images, right in bins) / 12 == pytest.approx((shares["tar"] + shares["ori"]) / 2)
    assert observed.held_out() == {"held_out.new": 6, "held_out.old": 6}


@pytest.mark.parametrize("labels", [[-1] * 12, None])
def test_what_is_not_known_is_not_drawn(joined, labels):
    target, clone, inputs, _ = joined
    old = None if labels is None else batches(inputs, labels)
    series = observe(target, clone, batches(inputs, [0] * 12), old).series()
    assert Reliability.of(series, None) is None
    assert "confused_old" not in series
    assert sum(Histogram.of(series).old) == (0 if labels is None else 12)


def test_the_album_sees_what_is_measured(joined):
    target, clone, inputs, logits = joined
    album = Album(Preprocess.of(target), None, clone.labels)
    new, old = [0, 1, 2] * 4, logits[:, :7].argmax(1)
    shares = observe(target, clone, batches(inputs, new), batches(inputs, old), album).shares()
    found = [photo.kind for photo in album.photos()]
    assert 0 < found.count("diverted") <= round(12 * shares["diverted"])
    assert 0 < found.count("missed") <= round(12 * shares["missed"])
    assert found.count("recognised") <= round(12 * shares["tar"])
    assert (found.count("recognised") > 0) == (shares["tar"] > 0)


def test_divergence_is_the_divergence_of_the_distributions(joined):
    target, clone, inputs, logits = joined
    found = measure(target, clone, batches(inputs, [0] * 12), batches(inputs, [0] * 12))
    before, after = logits[:, :7].double().log_softmax(1), logits.double().log_softmax(1)[:, :7]
    assert found["kl"] == pytest.approx(float((before.exp() * (before - after)).sum(1).mean()), rel=1e-4)


def test_without_labels_of_the_targets_images_its_accuracy_is_not_measured(joined):
    target, clone, inputs, _ = joined
    found = measure(target, clone, batches(inputs, [0] * 12), batches(inputs, [-1] * 12))
    assert [name for name, value in found.items() if value is None] == [
        *("ori", "avg", "avg_u", "target_alone", "ece", "ece_alone")
    ]


def test_without_images_of_the_target_only_the_clone_is_measured(joined):
    target, clone, inputs, _ = joined
    found = measure(target, clone, batches(inputs, [0] * 12), None)
    assert {name for name, value in found.items() if value is not None} == {"tar", "missed", "restored"}
    assert found["restored"] is True


def test_measuring_leaves_the_target_as_it_was(joined):
    target, clone, inputs, _ = joined
    before = what_it_is(target)
    measure(target, clone, batches(inputs, [0] * 12), batches(inputs, [0] * 12))
    assert what_it_is(target) == before


def test_a_target_that_does_not_come_back_is_noticed(joined):
    target, clone, inputs, _ = joined
    bias = target.get_classifier().bias.data
    before = bias.clone()

    def spoiling():
        for batch in batches(inputs, [0] * 12):
            yield batch
            bias.add_(1.0)

    class Spoiled(list):
        def __iter__(self):
            return spoiling()

    try:
        assert measure(target, clone, Spoiled([None]), None)["restored"] is False
    finally:
        bias.copy_(before)


def test_accuracy():
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75


def test_evidence_is_gathered_over_batches(joined):
    target, clone, inputs, _ = joined
    adapter = clone.config.adapters[0]
    reader = Reader(target, torch.device("cpu"))
    module, _ = clone.build(adapter, reader.preprocess)

    def read(images):
        logits, features = reader(images, [adapter.insertion.name])
        return {"target": logits, "clone": module(features[adapter.insertion.name])}

    gathered = gather(read, batches(inputs, list(range(12))))
    assert gathered["labels"].tolist() == list(range(12))
    assert torch.allclose(gathered["target"], target(inputs), atol=1e-5)
    whole = module(reader(inputs, [adapter.insertion.name])[1][adapter.insertion.name])
    for value, expected in zip(gathered["clone"], whole, strict=True):
        assert torch.allclose(value, expected, atol=1e-5)


def test_measuring_keeps_a_few_numbers_of_each_image(joined, monkeypatch):
    """Not the logits, of which there may be thousands."""
    target, clone, inputs, _ = joined
    widths = []

    def counting(read, batches):
        columns = gather(read, batches)
        widths.append(sum(column[0].numel() for column in columns.values()))
        return columns

    monkeypatch.setattr("pnc_hub.cloning.measuring.evaluate.gather", counting)
    measure(target, clone, batches(inputs, [0] * 12), batches(inputs, [0] * 12))
    assert max(widths) <= 6


@pytest.mark.parametrize("place", [(0, 0), (3, 6), (11, 2)])
def test_a_changed_bit_changes_the_digest_of_its_row(joined, place):
    logits = joined[3].clone()
    before = _digest(logits)
    logits.view(torch.int32)[place] ^= 1
    changed = _digest(logits) != before
    assert changed.nonzero().flatten().tolist() == [place[0]]

"""Ways through a model: which modules all of them pass, and what is left when the rest is taken away."""

import pytest
import torch
from torch import nn

from pnc_hub.errors import InsertionPointError
from pnc_hub.models.insertion import INPUT
from pnc_hub.models.skeleton import Skeleton

SIZE = (3, 8, 8)


class Toy(nn.Module):
    """Two convolutions, a norm and a classifier, in the order that a test gives them."""

    def __init__(self, flow):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 2, 2), nn.Conv2d(3, 6, 2, 2)
        self.third = nn.Conv2d(6, 6, 1)
        self.norm, self.head, self.head_dist = nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(6, 5)
        self.flow = flow

    def forward(self, images):
        return self.flow(self, images)

    def get_classifier(self):
        return self.head, self.head_dist


def vector(x):
    return x.mean((2, 3))


def straight(m, x):
    return m.head(m.norm(vector(m.third(m.first(x)))))


def two_branches(m, x):
    return m.head(vector(m.first(x))) + m.head_dist(m.norm(vector(m.third(m.second(x)))))


def around(m, x):
    x = m.first(x)
    return m.head(m.norm(vector(x + m.third(x))))


def sizes_around(m, x):
    images, channels, rows, columns = x.shape
    x = m.third(m.first(x)).reshape(images, 2 * channels, rows * columns // 4)
    return m.head(m.norm(x.mean(2)))


def two_classifiers(m, x):
    x = m.norm(vector(m.first(x)))
    return (m.head(x) + m.head_dist(x)) / 2


def twice(m, x):
    return m.head(m.norm(vector(m.third(m.third(m.first(x))))))


def shares_a_size(m, x):
    count, device = x.shape[0] * 2, x.device
    x = m.norm(vector(m.first(x)))
    return m.head(x) + torch.zeros(1, 5, dtype=x.dtype).to(device).repeat(count // 2, 1)


POINTS = {
    straight: ["first", "third", "norm"],
    around: ["first", "norm"],
    sizes_around: ["first", "third", "norm"],
    two_classifiers: ["first", "norm"],
    twice: ["first", "norm"],
    shares_a_size: ["first", "norm"],
    two_branches: ["first", "second", "third", "norm"],  # to be read only
}


@pytest.mark.parametrize("flow", POINTS)
def test_points(flow):
    points = Skeleton(Toy(flow), SIZE).points
    assert list(points) == [INPUT, *POINTS[flow]]


@pytest.mark.parametrize("flow", [flow for flow in POINTS if flow is not two_branches])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_tail_takes_any_number_of_images(flow, batch):
    torch.manual_seed(0)
    model, images = Toy(flow).eval(), torch.randn(batch, *SIZE)
    skeleton = Skeleton(model, SIZE)
    with torch.inference_mode():
        for name in skeleton.points:
            feature = skeleton.trunk(model, name)(images)
            assert torch.equal(skeleton.tail(model, name)(feature), model(images)), name


def test_a_tail_follows_the_dtype_of_its_feature():
    torch.manual_seed(0)
    model, images = Toy(shares_a_size).eval().double(), torch.randn(2, *SIZE, dtype=torch.float64)
    skeleton = Skeleton(model, SIZE)
    found = skeleton.tail(model, "first")(skeleton.trunk(model, "first")(images))
    assert found.dtype == torch.float64
    assert torch.equal(found, model(images))


def test_where_there_are_two_branches_features_can_be_read_and_nothing_can_be_cut():
    torch.manual_seed(0)
    model, images = Toy(two_branches).eval(), torch.randn(2, *SIZE)
    skeleton = Skeleton(model, SIZE)
    assert skeleton.trunk_names("third") == ["second", "third"]
    assert torch.equal(skeleton.trunk(model, "third")(images), model.third(model.second(images)))
    assert torch.equal(skeleton.tail(model, INPUT)(images), model(images))
    with pytest.raises(InsertionPointError, match=r"Toy cannot be cut at 'third': there is another way"):
        skeleton.tail(model, "third")


def test_a_size_that_the_feature_does_not_tell_is_refused_at_the_cut():
    def halves(m, x):
        half = (x.shape[0] + 1) // 2
        return m.head(m.norm(vector(m.first(x)))).narrow(0, 0, half)

    model = Toy(halves).eval()
    skeleton = Skeleton(model, SIZE)
    assert "first" in skeleton.points
    with pytest.raises(InsertionPointError, match="what follows a cut depends on"):
        skeleton.tail(model, "first")

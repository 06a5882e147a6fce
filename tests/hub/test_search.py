"""Clones are found by what their cards say, and nothing that others write into theirs can pass for a clone's."""

import itertools
from datetime import datetime

import pytest
import timm
import torch
from common import tiny_clone, tiny_model
from conftest import HUB
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData

import pnc_hub
from pnc_hub import Clone
from pnc_hub.errors import HubError
from pnc_hub.hub.search import table

_numbers = itertools.count()


@pytest.fixture
def author(hub) -> str:
    """Somebody who has published nothing yet."""
    return f"searcher-{next(_numbers)}"


@pytest.fixture
def token(hub, author) -> str:
    return hub.add_user(author)


@pytest.fixture
def birds(author, token, _target) -> str:
    """A published clone that knows three birds and fits one target."""
    return publish_birds(author, token, _target)


@pytest.fixture(scope="module")
def aviary(_target) -> tuple[dict, str]:
    """How to search among what one author has published, once for all: a clone of three birds; and its name."""
    author = f"searcher-{next(_numbers)}"
    token = HUB.add_user(author)
    return {"author": author, "token": token}, publish_birds(author, token, _target)


def publish_birds(author: str, token: str, target) -> str:
    clone = tiny_clone(
        tiny_model("resnet"), target, labels=("indigo bunting", "crane, grey", "Grünfink"), universal=False
    )
    clone.config.source.hub_id = "someone/bird-classifier"
    clone.config.adapters[0].target.hub_id = "timm/mobilenetv2_035.ra_in1k"
    clone.push_to_hub(f"{author}/birds", token=token)
    return f"{author}/birds"


@pytest.fixture
def insects(author, token, saved_clone) -> str:
    """A published clone that knows three insects, of a source and for a target without names, and for any other."""
    Clone.from_pretrained(saved_clone).push_to_hub(f"{author}/insects", token=token)
    return f"{author}/insects"


def publish_card(author: str, token: str, name: str, **data) -> str:
    """Somebody's repository with the metadata ``data``."""
    api = HfApi(token=token)
    api.create_repo(f"{author}/{name}")
    card = ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n")
    api.upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id=f"{author}/{name}")
    return f"{author}/{name}"


class TestFound:
    def test_what_is_told(self, author, token, birds):
        (found,) = pnc_hub.search(author=author, token=token)
        assert found.repo_id == birds
        assert found.sha == HfApi(token=token).model_info(birds).sha
        assert found.labels == ("indigo bunting", "crane, grey", "Grünfink")
        assert found.source == "someone/bird-classifier"
        assert found.targets == ("timm/mobilenetv2_035.ra_in1k",)
        assert not found.universal
        assert found.license == "apache-2.0"
        assert found.downloads == 0
        assert isinstance(found.last_modified, datetime)

    def test_what_was_found_attaches(self, author, token, birds, target, tmp_path):
        (found,) = pnc_hub.search(author=author, token=token)
        with pnc_hub.attach(target, f"{found.repo_id}@{found.sha}", token=token, cache_dir=tmp_path) as attachment:
            assert attachment.labels == found.labels

    @pytest.mark.parametrize(
        "conditions",
        [
            {},
            {"classes": "indigo bunting"},
            {"classes": ["indigo bunting", "Grünfink"]},
            {"classes": ["crane, grey"]},
            {"target": "mobilenetv2_035"},
            {"target": "mobilenetv2_035.ra_in1k"},
            {"target": "timm/mobilenetv2_035.ra_in1k"},
            {"target": "hf-hub:timm/mobilenetv2_035.ra_in1k"},
            {"source": "someone/bird-classifier"},
            {"classes": ["Grünfink"], "target": "mobilenetv2_035", "source": "someone/bird-classifier", "limit": 5},
        ],
    )
    def test_conditions_that_it_meets(self, aviary, conditions):
        published, birds = aviary
        assert [info.repo_id for info in pnc_hub.search(**published, **conditions)] == [birds]

    @pytest.mark.parametrize(
        "conditions",
        [
            {"classes": "bunting"},
            {"classes": ["indigo bunting", "ant"]},
            {"classes": ["crane"]},
            {"target": "mobilenetv2_050"},
            {"target": "mobilenetv2_035.other"},
            {"source": "timm/mobilenetv2_035.ra_in1k"},
            {"source": "someone/else"},
        ],
    )
    def test_conditions_that_it_does_not_meet(self, aviary, conditions):
        assert pnc_hub.search(**aviary[0], **conditions) == []

    def test_authors(self, author, token, birds):
        assert pnc_hub.search(author=f"{author}0", token=token) == []
        assert birds in [info.repo_id for info in pnc_hub.search(token=token)]

    def test_a_model_as_target(self, author, token, birds, insects):
        """Its architecture counts: which weights are in it, nothing but ``check`` can tell."""
        with torch.device("meta"):
            other = timm.create_model("resnet18")
        find = {"author": author, "token": token}
        found = pnc_hub.search(target=tiny_model("mobilenet"), **find)
        assert {info.repo_id for info in found} == {birds, insects}
        assert [info.repo_id for info in pnc_hub.search(target=other, **find)] == [insects]  # it fits any

    def test_clones_that_name_no_weights_are_found_by_any(self, author, token, birds):
        tags = ["pnc-hub", "pnc-class:ant", "pnc-target:mobilenetv2_035"]
        ants = publish_card(author, token, "ants", library_name="pnc-hub", tags=tags)
        found = pnc_hub.search(target="mobilenetv2_035.other", author=author, token=token)
        assert [info.repo_id for info in found] == [ants]

    def test_clones_for_any_target_are_found_once(self, author, token, birds, insects):
        (found,) = pnc_hub.search(target="mobilenetv2_035", classes="ant", author=author, token=token)
        assert found.repo_id == insects
        assert found.universal
        assert found.source == "resnet18"
        assert found.targets == ("mobilenetv2_035",)

    def test_limits(self, author, token, birds, insects):
        find = {"author": author, "token": token}
        assert [len(pnc_hub.search(limit=limit, **find)) for limit in (1, 2, 3, None)] == [1, 2, 2, 2]

    def test_private_clones_are_found_by_who_may_see_them(self, hub, author, token, saved_clone):
        Clone.from_pretrained(saved_clone).push_to_hub(f"{author}/secret", token=token, private=True)
        assert len(pnc_hub.search(author=author, token=token)) == 1
        assert pnc_hub.search(author=author, token=hub.add_user(f"{author}x")) == []

    def test_no_file_is_fetched(self, hub, author, token, birds):
        hub.requests.clear()
        pnc_hub.search(author=author, classes="indigo bunting", target="mobilenetv2_035", token=token)
        assert {record.path.partition("?")[0] for record in hub.requests} == {"/api/models"}


class TestNames:
    """Which of the models on a card is the source, and which are targets."""

    @pytest.mark.parametrize(
        ("base_model", "tags", "source", "targets"),
        [
            (None, [], None, ()),
            (None, ["target:resnet50"], None, ("resnet50",)),
            (None, ["source:resnet18", "target:resnet50"], "resnet18", ("resnet50",)),
            ("a/birds", ["source:a/birds"], "a/birds", ()),
            ("a/birds", ["source:a/birds", "target:resnet50", "target:any"], "a/birds", ("resnet50",)),
            (["timm/resnet50.a1"], ["source:resnet18", "target:resnet50"], "resnet18", ("timm/resnet50.a1",)),
            (["timm/r.tv", "timm/r.a1"], ["source:timm/r.tv", "target:r"], "timm/r.tv", ("timm/r.a1",)),
            (["timm/r.a1", "timm/vit.x"], ["source:timm/r.a1", "target:swin"], "timm/r.a1", ("timm/vit.x", "swin")),
            (["timm/r.a1"], ["source:timm/r.a1", "source:b/c"], None, ("timm/r.a1",)),
        ],
    )
    def test_lineage(self, author, token, base_model, tags, source, targets):
        data = {"base_model": base_model, "base_model_relation": "adapter"} if base_model else {}
        tags = ["pnc-hub", "pnc-class:ant", *(f"pnc-{tag}" for tag in tags)]
        publish_card(author, token, "card", library_name="pnc-hub", tags=tags, **data)
        (found,) = pnc_hub.search(author=author, token=token)
        assert (found.source, found.targets) == (source, targets)
        assert found.license is None

    @pytest.mark.parametrize("name", ["", "resnet 50", ".a1", "timm/", "résnet"])
    def test_what_is_no_architecture(self, hub, name):
        hub.requests.clear()
        with pytest.raises(ValueError, match="give a timm model, or the name of one"):
            pnc_hub.search(target=name)
        assert hub.requests == []

    def test_models_without_a_name(self, hub):
        with pytest.raises(ValueError, match="'Linear'"):
            pnc_hub.search(target=torch.nn.Linear(1, 1))

    @pytest.mark.parametrize("limit", [0, -1])
    def test_limits_that_are_none(self, limit):
        with pytest.raises(ValueError, match="positive"):
            pnc_hub.search(limit=limit)


class TestOthers:
    @pytest.mark.parametrize(
        "tags",
        [
            ["pnc-class:\x1b[31mred"],
            ["pnc-class:\u202eevil"],
            ["pnc-class:" + "a" * 300],
            ["pnc-class:two\nlines"],
            ["pnc-target:../../etc"],
            ["pnc-target:a b"],
            ["pnc-source:a/b/c"],
        ],
    )
    def test_tags_that_no_clone_has(self, author, token, birds, tags):
        publish_card(author, token, "evil", library_name="pnc-hub", tags=["pnc-hub", *tags])
        assert [info.repo_id for info in pnc_hub.search(author=author, token=token)] == [birds]

    @pytest.mark.parametrize("license_name", ["\x1b[31m", "a | b", "x" * 100])
    def test_licences_that_are_no_words(self, author, token, license_name):
        publish_card(author, token, "card", library_name="pnc-hub", license=license_name, tags=["pnc-class:ant"])
        (found,) = pnc_hub.search(author=author, token=token)
        assert found.license is None

    @pytest.mark.parametrize(
        "data",
        [
            "tags: 5\nlibrary_name: pnc-hub",
            "tags: {pnc-hub: 1}",
            "tags: [pnc-hub, 5, [], null]\nlicense: [mit]",
            "tags: [pnc-hub]\nbase_model: [null]",
            "tags: [pnc-hub]\nbase_model: {a: b}\nbase_model_relation: adapter",
            "tags: [pnc-hub]\nmodel-index: 5",
        ],
    )
    def test_a_card_that_is_odd_hides_no_other(self, author, token, birds, data):
        api = HfApi(token=token)
        api.create_repo(f"{author}/odd")
        add = CommitOperationAdd("README.md", f"---\n{data}\n---\n".encode())
        api.create_commit(f"{author}/odd", [add], commit_message="odd")
        assert birds in [info.repo_id for info in pnc_hub.search(author=author, token=token)]

    def test_models_of_other_libraries(self, author, token):
        publish_card(author, token, "other", library_name="timm", tags=["pnc-class:ant"])
        assert pnc_hub.search(classes="ant", author=author, token=token) == []

    @pytest.mark.parametrize("status", [400, 401, 500])
    def test_a_hub_that_does_not_answer(self, hub, author, token, monkeypatch, status):
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        with (
            hub.fail("GET /api/models", status=status, times=100),
            pytest.raises(HubError, match="did not answer the search"),
        ):
            pnc_hub.search(author=author, token=token)


def test_the_table(author, token, birds, insects):
    rows = table(pnc_hub.search(author=author, token=token)).splitlines()
    assert (
        len({row.index(cell) for row, cell in zip(rows, ["adds", "indigo", "ant,"], strict=False) if cell in row}) == 1
    )
    assert rows[0].split() == ["clone", "adds", "to", "from", "licence", "downloads", "changed"]
    shown = {row.split()[0]: row for row in rows[1:]}
    assert "indigo bunting, crane, grey, Grünfink" in shown[birds]
    assert "timm/mobilenetv2_035.ra_in1k" in shown[birds]
    assert "ant, bee, wasp" in shown[insects]

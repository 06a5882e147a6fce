"""D: labels and cards that are something else than names and text."""

import json

import pytest
from common import slow
from huggingface_hub import ModelCard

import pnc_hub
from hostile.harness import bounded, by_number, change, harmless, put, read_config, refused, untouched, write_config
from pnc_hub import Clone
from pnc_hub.artifact.files import CARD, CONFIG
from pnc_hub.errors import ClassCollisionError
from pnc_hub.hub import card

LABELS = {
    "D77-the same": "bee",
    "D78-by case": "BEE",
    "D78-full width": "\uff42\uff45\uff45",
    "D78-superscript": "be\u1d49",
    "D80-bidirectional override": "\u202eevil",
    "D80-bidirectional isolate": "\u2066x",
    "D80-zero width": "zero\u200bwidth",
    "D80-NUL": "nul\0",
    "D80-ANSI escape": "\x1b[31mred",
    "D80-newline": "ant\n",
    "D80-line separator": "a\u2028b",
    "D80-tag characters": "\U000e0041",
    "D80-1 MB": "a" * 10**6,
    "D80-empty": "",
    "D80-spaces": "   ",
    "D83-front matter": "x\n---\nlibrary_name: evil",
}

TEXT = {
    "D84-a tag": "!!python/object/apply:os.system ['id']",
    "D85-an alias": "*a",
    "D88-a key": "library_name: evil",
    "D89-a script": "<script>alert(1)</script>",
    "D89-an image": "![x](https://example.org/x.png)",
    "D89-a link": "[x](../../settings)",
    "D89-a cell": "a | b | c",
    "D90-braces": "{{ config.__class__ }}",
    "D90-a block": "{% for x in y %}",
    "D90-format": "{0.__class__}",
}

BOMB = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 1}]" for i in range(20))
CARDS = {
    "D83-another library": "---\nlibrary_name: evil\n---\n",
    "D84-python tag": "---\nlibrary_name: !!python/object/apply:os.system ['touch /tmp/pwned']\n---\n",
    "D85-alias bomb": f"---\n{BOMB}\n---\n",
    "D86-nesting": "---\na: " + "[" * 10**5 + "]" * 10**5 + "\n---\n",
    "D87-list": "---\n- a\n---\n",
    "D88-keys twice": "---\nlicense: mit\nlicense: gpl\n---\n",
    "D89-markup": "<script>alert(1)</script>",
    "D90-braces": "{{ 7 * 7 }}",
    "D86-no UTF-8": "\udcff",
}  # fmt: skip


@by_number(LABELS)
def test_labels_that_are_refused(clone_folder, target, case):
    change(clone_folder, "classes/0/label", case)
    refused(target, clone_folder, file=CONFIG)


def test_d79_the_name_of_a_class_that_the_model_has(clone_folder, target):
    target.pretrained_cfg["label_names"] = [*"abcdef", "Wasp"]
    try:
        refused(target, clone_folder, ClassCollisionError)
    finally:
        del target.pretrained_cfg["label_names"]


def test_d81_a_million_labels(clone_folder, target):
    labels = [{"label": f"c{place}", "source_index": place} for place in range(10**6)]
    (clone_folder / CONFIG).write_text(json.dumps({**read_config(clone_folder), "classes": labels}))
    refused(target, clone_folder, file=CONFIG)


@pytest.mark.parametrize("count", [2, 4, *map(slow, [1, 6])], ids=lambda count: f"D82-{count} labels")
def test_other_labels_than_the_head_has_rows(clone_folder, target, count):
    classes = [{"label": f"c{place}", "source_index": place} for place in range(count)]
    change(clone_folder, "classes", classes)
    refused(target, clone_folder, file="model.safetensors")


@by_number(TEXT)
def test_labels_that_stay_text(clone_folder, saved_clone, target, case):
    """What a reader of YAML, Markdown or a template would take for more is a name like any other, in the card too."""
    change(clone_folder, "classes/0/label", case)
    harmless(target, clone_folder, saved_clone)
    page = ModelCard(card.render(Clone.from_pretrained(clone_folder).config))
    assert page.data.library_name == "pnc-hub"
    assert any(case in tag for tag in page.data.tags)
    assert "<script>" not in page.text


@by_number(CARDS)
def test_cards_are_not_read(clone_folder, saved_clone, target, case):
    (clone_folder / CARD).write_text(case, encoding="utf-8", errors="surrogateescape")
    harmless(target, clone_folder, saved_clone)


@pytest.mark.parametrize(
    "place", ["source/license", *map(slow, ["adapters/0/metrics/regime", "pnc_hub_version", "source/hub_id"])]
)
def test_d83_front_matter_elsewhere(clone_folder, target, place):
    config = read_config(clone_folder)
    write_config(clone_folder, put(config, place, "x\n---\nlibrary_name: evil"))
    refused(target, clone_folder, file=CONFIG)


def test_d80_messages_do_not_carry_what_they_refuse(clone_folder, target):
    """An escape sequence in a name must not reach the terminal by way of the error."""
    for place, value in (("cut", "\x1b[2J"), ("classes/0/label", "\x1b[2J"), ("adapters/0/name", "\u202eevil")):
        config = read_config(clone_folder)
        write_config(clone_folder, put(config, place, value))
        message = str(refused(target, clone_folder, file=CONFIG))
        assert message.isprintable()
        write_config(clone_folder, config)


def test_d80_labels_of_any_language(clone_folder, saved_clone, target):
    for label in ("Zürich", "日本語", "🐝", "naïve café"):
        change(clone_folder, "classes/0/label", label)
        with untouched(target), bounded(), pnc_hub.attach(target, clone_folder) as attachment:
            assert attachment.labels[0] == label

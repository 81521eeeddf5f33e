"""Patch maps: cosines and words equal loops, tokens stand where the adapter took them, a run leaves its files."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from test_alignment_groups import evaluator_of
from test_alignment_measurement import BASE
from torch.nn.functional import normalize

from ima.alignment.attention_mass import content_words
from ima.config.settings import Alignment
from ima.core.types import Role
from ima.models.adapters.linear import LinearAdapter, PoolAdapter
from ima.models.adapters.query import QueryAdapter
from ima.models.adapters.video import VideoAdapter
from ima.pipeline.patch_files import NO_PLACE, on_frames, write_patches


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("here is the cow\nhere is the red bus\nwe see a teapot\nwe see a cow now\n")
    evaluator = evaluator_of()
    samples = evaluator.source.samples("val")
    suite = evaluator.teacher_forced(samples, Alignment(groups=("patches",), words=str(path)))[1]
    suite.rows(BASE, {})
    return evaluator, samples, suite


def test_maps_are_of_different_things_and_name_their_texts_words(suite):
    _, samples, suite = suite
    by_id = {sample.id: sample for sample in samples}
    shown = [by_id[entry["sample"]].references[0] for entry in suite.groups.mapped]
    assert len(set(shown)) == len(shown) == 6
    for entry, text in zip(suite.groups.mapped, shown, strict=True):
        assert entry["text_words"] == text.removeprefix("a ").split()


def test_cosines_and_nearest_words_equal_loops(suite):
    evaluator, samples, suite = suite
    llm, layer = evaluator.module.llm, 2
    bank, percepts = suite.groups.beside.words, suite.groups.percepts
    everyone = suite.bank.pairing.ids
    means = [normalize(percepts.at(layer, [name])[0].double(), dim=1).mean(0) for name in everyone]
    centre = torch.stack(means).mean(0)
    states = bank.state_LCD[bank.layers.index(layer)].double()
    middle = states.mean(0)
    by_id = {sample.id: sample for sample in samples}
    for entry in suite.groups.mapped[:3]:
        x = normalize(percepts.at(layer, [entry["sample"]])[0].double(), dim=1) - centre
        x = normalize(x, dim=1)
        ids, roles = evaluator._shown_text(by_id[entry["sample"]])
        with torch.no_grad():
            hidden = llm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].double()
        answer = [place for place, role in enumerate(roles) if role == Role.ANSWER]
        words = content_words(llm, ids, roles)
        for k, token in enumerate(entry["tokens"]):
            for (_, places), found in zip(words, token["cosines"], strict=True):
                state = normalize(normalize(hidden[answer[places[-1]]], dim=0) - middle, dim=0)
                assert found == pytest.approx(float(x[k] @ state), abs=2e-3)
            best = {}
            for context, state in zip(bank.word_C.tolist(), states, strict=True):
                cosine = float(normalize(state - middle, dim=0) @ x[k])
                best[bank.words[context]] = max(best.get(bank.words[context], -1.0), cosine)
            wanted = sorted(best.values(), reverse=True)[:3]
            assert [value for _, value in token["words"]] == pytest.approx(wanted, abs=1e-3)


def test_a_token_stands_where_only_it_changes_the_adapters_output():
    torch.manual_seed(0)
    for adapter, num in ((PoolAdapter(5, 8, grid=2, hidden=6), 16), (LinearAdapter(5, 8), 9)):
        adapter.eval()
        f = torch.randn(1, num, 5)
        side = int(num**0.5)
        with torch.no_grad():
            before = adapter(f)
            places = adapter.places(num, before.shape[1])
            assert len(places) == before.shape[1]
            for patch in range(num):
                changed = f.clone()
                changed[0, patch] += 1.0
                moved = (adapter(changed) - before).abs().sum(-1)[0] > 1e-7
                row, column = (patch // side + 0.5) / side, (patch % side + 0.5) / side
                for place, is_moved in zip(places, moved.tolist(), strict=True):
                    if place is not None:
                        left, top, width, height = place
                        inside = left < column < left + width and top < row < top + height
                        assert inside == is_moved


def test_sequences_are_strips_queries_and_motion_have_no_place_and_cls_is_left_out():
    assert PoolAdapter(5, 8, grid=2, layout="sequence").places(9, 5)[1:3] == [
        (0.0, 0.0, 0.25, 1.0),
        (0.25, 0.0, 0.25, 1.0),
    ]
    assert QueryAdapter(8, 8, num_tokens=3).places(9, 3) == [None] * 3
    assert LinearAdapter(5, 8).places(10, 10)[:2] == [None, (0.0, 0.0, 1 / 3, 1 / 3)]
    assert LinearAdapter(5, 8).places(11, 11) == [None] * 11
    places = VideoAdapter(5, 8, num_frames=2, grid=2, num_motion=3).places(8, 8)
    assert [place is None for place in places] == [True] + [False] * 4 + [True] * 3
    assert on_frames((0.5, 0.0, 0.5, 0.5), "video")[1] == (0.75, 0.0, 0.25, 0.25)


def test_a_measurement_leaves_maps_with_their_pictures(suite, tmp_path):
    evaluator, samples, suite = suite
    evaluator.source.medium = lambda sample: Image.new("RGB", (20, 20), "red")
    write_patches(tmp_path, suite, evaluator, samples)
    found = json.loads((tmp_path / "patches.json").read_text())
    assert found["layer"] == 2 and len(found["media"]) == 6
    for entry in found["media"]:
        assert (tmp_path / entry["image"]).is_file()
        assert [len(token["places"]) for token in entry["tokens"]] == [0, 1, 1, 1, 1]
    bare = SimpleNamespace(module=SimpleNamespace(), channel="", source=evaluator.source)
    write_patches(tmp_path, suite, bare, samples)
    assert json.loads((tmp_path / "patches.json").read_text())["media"][0]["note"] == NO_PLACE

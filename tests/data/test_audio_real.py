"""The real sounds and the real sound encoders: every file is accounted for, nothing leaks, the weights are the ones."""

from __future__ import annotations

import csv
import functools
import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor

from ima.core.assets.registry import locate
from ima.core.media import Sound
from ima.data.stampworld.audio import StampAudio
from ima.data.stampworld.sounds import LEVEL, RATE, SOUND_TABLE, SoundCatalog, active_rms, resampled
from ima.models.encoders.audio import AisFx, LogMel
from ima.models.encoders.base import Encoder
from ima.models.encoders.whisper import WhisperTiny
from ima.tasks.metrics.vocabulary import load_nouns

pytestmark = pytest.mark.real
LEAK = 0.5  # correlation of two recordings at the best shift


@functools.cache
def catalog() -> SoundCatalog:
    return SoundCatalog()


def rows() -> list[dict[str, str]]:
    with SOUND_TABLE.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def spectra(waves: list[np.ndarray]) -> Tensor:
    """(N, length / 2 + 1) at a tenth of the rate, each of norm 1 in time."""
    length = 1 << 16
    short = [wave[: 7 * RATE] for wave in waves]
    small = [torch.from_numpy(resampled(wave, RATE, RATE // 10)) for wave in short]
    return torch.stack([torch.fft.rfft(wave / wave.norm(), length) for wave in small])


@pytest.mark.stamps
def test_every_effect_of_the_stamps_is_in_the_table_once_with_its_status() -> None:
    folder = locate("stamps")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.ogg")}
    effects = {name for name in there if not name.startswith("symbols/") and "_desc" not in name}
    listed = [row["file"] for row in rows() if row["package"] == "stamps"]
    assert sorted(listed) == sorted(effects)
    assert {row["status"] for row in rows()} == {"core", "silent", "copy", "speech", "voice", "unclear", "nonfree"}
    assert [row["file"] for row in rows() if row["status"] == "nonfree"] == ["vehicles/emergency/firetruck.ogg"]
    assert sum(row["status"] == "silent" for row in rows()) == 4


@pytest.mark.stamps
def test_every_recording_is_intact_and_at_one_level() -> None:
    seconds = {f"{row['package']}/{row['file']}": float(row["seconds"]) for row in rows()}
    for recording in catalog().recordings:
        wave = catalog().wave(recording)
        assert len(wave) / RATE == pytest.approx(seconds[recording.key], abs=0.02), recording
        assert active_rms(wave) == pytest.approx(LEVEL, rel=0.02) and np.abs(wave).max() < 3, recording
        assert recording.noun in load_nouns("sounds")


@pytest.mark.stamps
@pytest.mark.scratch
def test_no_recording_of_a_test_track_correlates_with_one_of_training() -> None:
    by_split = {split: [r for r in catalog().recordings if r.split == split] for split in ("train", "T1", "T2")}
    assert [len(found) for found in by_split.values()] == [75, 16, 12]
    train = spectra([catalog().wave(r) for r in by_split["train"]])
    for split in ("T1", "T2"):
        for recording in by_split[split]:
            found = torch.fft.irfft(train * spectra([catalog().wave(recording)]).conj()).abs().amax(1)
            best = int(found.argmax())
            assert found[best] < LEAK, (recording, by_split["train"][best], float(found[best]))
    nouns = {split: {r.noun for r in found} for split, found in by_split.items()}
    assert nouns["T1"] <= nouns["train"] and not nouns["T2"] & nouns["train"]
    clusters = {split: {r.cluster for r in found} for split, found in by_split.items()}
    assert not clusters["train"] & (clusters["T1"] | clusters["T2"])


@pytest.mark.stamps
def test_recordings_that_overlap_share_a_cluster() -> None:
    """The measure of the leak test finds what is known to overlap, and clusters say so."""
    found = {r.file: r for r in catalog().recordings}
    mammals = "animals/mammals/"
    for a, b in (("bovines/goat.ogg", "bovines/mountaingoat.ogg"), ("camel/camel.ogg", "camel/dromedary.ogg")):
        one, other = found[mammals + a], found[mammals + b]
        both = spectra([catalog().wave(one), catalog().wave(other)])
        assert torch.fft.irfft(both[0] * both[1].conj()).abs().max() > LEAK
        assert one.cluster == other.cluster


@pytest.mark.stamps
def test_no_mixture_is_silent_clipped_or_longer_than_it_says() -> None:
    source = StampAudio(num_train=20, num_t0=10)
    for sample in source.samples("train") + source.samples("T0") + source.samples("T2")[:10]:
        sound = source.medium(sample)
        assert 0.02 < np.abs(sound.wave).max() <= 1 and sound.seconds == 5.0
        for layer in source.layers(sample)[:-1]:
            assert active_rms(layer) > 0.02


@pytest.mark.stamps
def test_no_caption_and_layout_of_training_is_repeated_in_a_test() -> None:
    source = StampAudio(num_train=1000)
    train = {(s.references[0], s.facts["recordings"]) for s in source.samples("train") if len(s.facts["nouns"]) > 1}
    for split in ("val", "T0", "T1", "T2"):
        mixed = {(s.references[0], s.facts["recordings"]) for s in source.samples(split) if len(s.facts["nouns"]) > 1}
        assert not train & mixed


def test_the_network_of_aisfx_is_that_of_its_package() -> None:
    spec = importlib.util.find_spec("aisfx")
    assert spec is not None and spec.submodule_search_locations is not None
    path = f"{spec.submodule_search_locations[0]}/models/cnn2d.py"
    loaded = importlib.util.spec_from_file_location("cnn2d", path)
    assert loaded is not None and loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    encoder = AisFx(seconds=2.3)
    theirs = module.EmbeddingNet("max", 3, 1, 64).eval()
    theirs.load_state_dict(encoder.model.state_dict())
    x_B = torch.rand(2, 100, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(x_B).amax(1), theirs(x_B), atol=1e-5, rtol=1e-4)


def retrieval(encoder: Encoder, halves: list[tuple[Sound, Sound]]) -> float:
    """Share of sounds whose second half is nearest to their first half among all second halves (centred cosine)."""
    pooled = [torch.stack([encoder(encoder.preprocess(pair[side])[None])[0].mean(0) for pair in halves])
              for side in (0, 1)]  # fmt: skip
    mean = torch.cat(pooled).mean(0)
    one, other = (torch.nn.functional.normalize(half - mean, dim=1) for half in pooled)
    return float(((one @ other.T).argmax(1) == torch.arange(len(halves))).float().mean())


@pytest.mark.stamps
def test_trained_encoders_find_the_other_half_of_a_sound_and_random_weights_do_not() -> None:
    long = [r for r in catalog().recordings if r.package == "stamps" and len(catalog().wave(r)) > 2.5 * RATE][:24]
    halves = []
    for recording in long:
        wave = catalog().wave(recording)
        halves.append((Sound(wave[: len(wave) // 2], RATE), Sound(wave[len(wave) // 2 :], RATE)))
    made = {"aisfx": AisFx(seconds=1.5), "random": AisFx(seconds=1.5, pretrained=False),
            "log_mel": LogMel(seconds=1.5), "whisper": WhisperTiny(layer=2, seconds=1.5)}  # fmt: skip
    found = {name: retrieval(encoder, halves) for name, encoder in made.items()}
    assert found["aisfx"] > 0.7 and found["whisper"] > 0.6
    assert found["aisfx"] > found["random"] + 0.2

"""Encoder and adapter of clips: order is seen or not seen as asked, places and times stay apart, mistakes are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ima.config.instantiation import build
from ima.core.errors import UserError
from ima.core.media import Frames
from ima.models.adapters.video import VideoAdapter, trend
from ima.models.encoders.base import Encoder, check_features, fingerprint_of
from ima.models.encoders.image import ImagePreprocess
from ima.models.encoders.video import CODE_WIDTH, VideoFrames, time_code

E, SIDE = 6, 4


class Mosaic(Encoder):
    """Means of the picture's patches through a fixed matrix; with or without leading tokens."""

    modality, dim, fingerprint = "image", E, "mosaic"

    def __init__(self, extra: int = 0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(3, E, generator=generator))
        self.extra, self.num_tokens = extra, extra + SIDE * SIDE
        self.preprocess = ImagePreprocess(16, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.fingerprint = fingerprint_of(self, kind="mosaic", extra=extra)
        self.freeze()

    def encode(self, x_B: Tensor) -> Tensor:
        f_BNE = torch.nn.functional.adaptive_avg_pool2d(x_B, SIDE).flatten(2).transpose(1, 2) @ self.weight
        return torch.cat([100 * torch.ones(len(x_B), self.extra, E), f_BNE], dim=1)


def clip(seed: int, num: int = 8) -> Frames:
    rng = np.random.default_rng(seed)
    return Frames(tuple(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(num)))


def encode(encoder: VideoFrames, *clips: Frames) -> Tensor:
    return check_features(encoder, encoder(torch.stack([encoder.preprocess(one) for one in clips])), len(clips))


def reordered(one: Frames, order: list[int]) -> Frames:
    return Frames(tuple(one.images[index] for index in order))


@pytest.mark.parametrize("extra", [0, 1, 5])
@pytest.mark.parametrize(("num_frames", "grid"), [(8, 4), (4, 2), (1, 1), (8, 3)])
def test_tokens_come_frame_by_frame_and_row_by_row(num_frames: int, grid: int, extra: int) -> None:
    image = Mosaic(extra)
    encoder = VideoFrames(image, num_frames, grid)
    one = clip(0)
    f_NE = encode(encoder, one, clip(1))[0]
    assert (encoder.num_tokens, encoder.dim) == (num_frames * grid * grid, E + CODE_WIDTH)
    chosen = [int((index + 0.5) * 8 / num_frames) for index in range(num_frames)]
    for index, frame in enumerate(chosen):
        tokens = f_NE.unflatten(0, (num_frames, -1))[index]
        map_Ehw = image(image.preprocess(one.images[frame])[None])[0, extra:].T.reshape(E, SIDE, SIDE)
        expected = torch.nn.functional.adaptive_avg_pool2d(map_Ehw, grid).flatten(1).T
        torch.testing.assert_close(tokens[:, :E], expected)
        assert torch.equal(tokens[:, E:], time_code(num_frames)[index].expand(grid * grid, -1))


def test_positions_tell_the_order_and_the_mean_does_not() -> None:
    order = [3, 0, 7, 1, 5, 2, 6, 4]
    seen, blind = VideoFrames(Mosaic()), VideoFrames(Mosaic(), time="mean")
    assert (seen.num_tokens, seen.dim) == (blind.num_tokens, blind.dim)
    straight, spoilt = encode(seen, clip(0), reordered(clip(0), order))
    assert (straight - spoilt).abs().max() > 0.1
    straight, spoilt = encode(blind, clip(0), reordered(clip(0), order))
    torch.testing.assert_close(straight, spoilt)
    assert torch.equal(straight[: SIDE * SIDE], straight[-SIDE * SIDE :])
    assert not torch.allclose(*encode(blind, clip(0), clip(1)))


def test_features_do_not_depend_on_the_batch_or_on_who_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VideoFrames(Mosaic())
    whole = encode(encoder, *(clip(seed) for seed in range(5)))
    alone = torch.cat([encode(encoder, clip(seed)) for seed in range(5)])
    torch.testing.assert_close(whole, alone)
    monkeypatch.setattr("ima.models.encoders.video.FRAMES_AT_ONCE", 3)
    torch.testing.assert_close(encode(encoder, *(clip(seed) for seed in range(5))), whole)


def test_repeated_frames_and_short_clips_are_no_problem() -> None:
    encoder = VideoFrames(Mosaic(), num_frames=8, grid=2)
    f_NE = encode(encoder, reordered(clip(0), [4] * 8))[0, :, :E].unflatten(0, (8, 4))
    assert all(torch.equal(f_NE[0], frame) for frame in f_NE)
    assert encode(encoder, clip(0, num=3)).shape == (1, 32, E + CODE_WIDTH)


def test_a_frame_that_repeats_the_one_before_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VideoFrames(Mosaic())
    orders = [[4] * 8, [0, 0, 1, 1, 0, 0, 2, 2], list(range(8))]
    seen: list[int] = []
    inner = encoder.image.encode
    monkeypatch.setattr(encoder.image, "encode", lambda x_B: (seen.append(len(x_B)), inner(x_B))[1])
    out = encode(encoder, *(reordered(clip(0), order) for order in orders))
    assert sum(seen) == 1 + 4 + 8
    frames = out[:, :, :E].unflatten(1, (8, -1))
    for row, order in zip(frames, orders, strict=True):
        torch.testing.assert_close(row, frames[2, order])


def test_the_fingerprint_sees_all_that_features_depend_on() -> None:
    prints = [
        VideoFrames(image, **options).fingerprint
        for image, options in (
            (Mosaic(), {}),
            (Mosaic(seed=1), {}),
            (Mosaic(), {"num_frames": 4}),
            (Mosaic(), {"grid": 2}),
            (Mosaic(), {"size": 24}),
            (Mosaic(), {"time": "mean"}),
        )
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == VideoFrames(Mosaic()).fingerprint


def test_codes_of_times_differ_and_are_bounded() -> None:
    for num_frames in (2, 8, 16, 64):
        code = time_code(num_frames)
        assert code.shape == (num_frames, CODE_WIDTH) and float(code.abs().max()) <= 1
        apart = torch.cdist(code, code) + 9 * torch.eye(num_frames)
        assert float(apart.min()) > 0.1


class Loose(Mosaic):
    def encode(self, x_B: Tensor) -> Tensor:
        return super().encode(x_B)[:, :7]


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (torch.nn.Linear(2, 2), {}, "encoder.image: Linear is no image encoder"),
        (Mosaic(), {"grid": 0}, "encoder.grid: 0"),
        (Mosaic(), {"num_frames": 0}, "encoder.num_frames: 0"),
        (Mosaic(), {"time": "median"}, "encoder.time: 'median'"),
        (Loose(), {}, "encoder.image: the 7 tokens of Loose form no square"),
    ],
)
def test_mistakes_are_named(image: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        VideoFrames(image, **options)


def test_a_config_nests_any_image_encoder() -> None:
    image = {"_target_": "ima.models.encoders.image.TimmImage", "name": "resnet10t", "pretrained": False}
    node = {"_target_": "ima.models.encoders.video.VideoFrames", "image": image, "size": 64, "grid": 2, "num_frames": 2}
    encoder = build({"encoder": node}, "encoder")
    first, second = encode(encoder, clip(0), clip(1))
    assert encoder.modality == "video" and first.shape == (8, encoder.dim) and not torch.equal(first, second)


def adapter(**options: Any) -> VideoAdapter:
    torch.manual_seed(0)
    given = {"num_frames": 4, "grid": 2, "num_motion": 2, "motion_grid": 3, "rank": 2, "hidden": 16}
    return VideoAdapter(12, 20, **given | options)


def features(num: int = 5, frames: int = 4, side: int = 3, dim: int = 12) -> Tensor:
    return torch.randn(num, frames * side * side, dim, generator=torch.Generator().manual_seed(1)) * 3 + 1


@pytest.mark.parametrize("side", [1, 3, 4])
def test_the_adapter_has_its_shape_for_any_square(side: int) -> None:
    net = adapter()
    out = net(features(side=side))
    assert out.shape == (5, net.num_tokens, 20) == (5, 1 + 4 + 2, 20)
    out.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    if side == 3:
        assert [n for n, p in net.named_parameters() if not bool(p.grad.abs().sum() > 0)] == []


@pytest.mark.parametrize("target", [0.5, 40.0])
def test_the_adapter_starts_at_the_norm(target: float) -> None:
    net = adapter()
    net.start_at_norm(features(), target)
    assert float(net(features()).detach().norm(dim=-1).mean()) == pytest.approx(target, rel=1e-5)


def test_motion_tokens_see_nothing_in_a_clip_that_stands_still() -> None:
    net = adapter()
    still = features(2, frames=1).unflatten(1, (1, 9)).expand(-1, 4, -1, -1).flatten(1, 2)
    tokens = net(still)
    torch.testing.assert_close(tokens[0, 5:], tokens[1, 5:])
    assert not torch.allclose(tokens[0, :5], tokens[1, :5])
    moving = net(features(2))
    assert not torch.allclose(moving[0, 5:], moving[1, 5:])


def test_the_adapter_tells_order_and_place() -> None:
    net, f_BNE = adapter(), features(1)
    frames = f_BNE.unflatten(1, (4, 9))
    backwards, mirrored = frames.flip(1).flatten(1, 2), frames.unflatten(2, (3, 3)).flip(3).flatten(1, 3)
    for other in (backwards, mirrored):
        assert (net(other) - net(f_BNE)).abs().max() > 0.1


def test_cells_do_not_mix() -> None:
    """A change in one cell of all frames changes that cell's token and not another's."""
    net = adapter(grid=3)
    frames = features(1).unflatten(1, (4, 9))
    changed = frames.clone()
    changed[:, :, 5] += torch.randn(12, generator=torch.Generator().manual_seed(3))
    one, other = net(frames.flatten(1, 2))[0], net(changed.flatten(1, 2))[0]
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(one[1:10], other[1:10], strict=True)]
    assert same == [index != 5 for index in range(9)]


def test_the_trend_of_a_straight_rise_is_its_half() -> None:
    for num in (2, 5, 8):
        weights = trend(num)
        torch.testing.assert_close((weights * (3 + 2 * torch.linspace(-1, 1, num))).sum(), torch.tensor(2.0))
        torch.testing.assert_close(weights.sum(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_tokens_that_are_no_frames_are_refused_with_the_key() -> None:
    with pytest.raises(UserError, match=r"adapter.num_frames: 49 encoder tokens"):
        adapter()(torch.zeros(1, 49, 12))

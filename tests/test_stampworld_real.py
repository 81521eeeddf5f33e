"""StampWorld on the real package: every stamp renders, no track shares a picture, the demo has what it needs."""

from __future__ import annotations

import numpy as np
import pytest

from ima.data.stampworld.catalog import Catalog
from ima.data.stampworld.scenes import StampScenes
from ima.data.stampworld.single import StampSingle

pytestmark = [pytest.mark.real, pytest.mark.stamps]


@pytest.mark.parametrize("svg", [False, True])
def test_every_core_stamp_is_intact_and_visible(svg: bool) -> None:
    if svg:
        pytest.importorskip("resvg_py")
    catalog = Catalog(svg=svg)
    assert len(catalog.stamps) == (660 if svg else 514)
    for stamp in catalog.stamps:
        if svg and stamp.image == "png":
            continue
        image = catalog.picture(stamp)
        scale = min(1.0, 256 / max(stamp.width, stamp.height))
        assert abs(image.width - stamp.width * scale) <= 1 and abs(image.height - stamp.height * scale) <= 1, stamp
        assert (np.asarray(image.getchannel("A")) > 100).mean() > 0.02, stamp


def test_no_two_clusters_of_different_splits_share_a_picture() -> None:
    catalog = Catalog()
    by_digest: dict[str, set[str]] = {}
    for stamp in catalog.stamps:
        by_digest.setdefault(stamp.digest, set()).add(stamp.split)
    assert all(len(splits) == 1 for splits in by_digest.values())


def test_the_demo_tracks() -> None:
    source = StampSingle()
    num = {split: len(source.samples(split)) for split in source.splits}
    assert num["T0"] >= 200 and num["T1"] >= 40
    assert len({s.facts["noun"] for s in source.samples("T0")}) >= 30
    assert len({s.cluster for s in source.samples("T0")}) >= 60
    assert sum("human" in s.facts["kinds"] for s in source.samples("train")) > num["train"] / 2


def test_boxes_of_real_scenes_hold_the_visible_pixels() -> None:
    """Draw each scene twice, with and without its objects' pixels: what differs lies inside the boxes."""
    source = StampScenes(num_train=1, num_val=2, num_t0=12, num_t1=12, num_t2=4)
    for sample in source.samples("T0") + source.samples("T1"):
        picture = np.asarray(source.medium(sample), dtype=int)
        inside = np.zeros(picture.shape[:2], dtype=bool)
        for item in sample.facts["objects"]:
            for left, top, right, bottom in item["boxes"]:
                inside[top:bottom, left:right] = True
                patch = picture[top:bottom, left:right]
                assert patch.std() > 4, (sample.id, item["noun"])
        assert 0.005 < inside.mean() < 0.7

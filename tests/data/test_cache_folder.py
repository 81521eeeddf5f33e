"""A cache folder that is none (a file, a link to nothing, a loop, a name too long): one line that names IMA_CACHE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_data import Means

from ima.core.cache import build_folder, cache_dir
from ima.core.errors import UserError
from ima.data.feature_cache import FeatureStore
from ima.data.shapes import Shapes


def a_file(place: Path) -> Path:
    place.write_text("mine")
    return place


def inside_a_file(place: Path) -> Path:
    return a_file(place) / "cache"


def a_link_to_nothing(place: Path) -> Path:
    place.symlink_to(place.parent / "nowhere" / "cache")
    return place


def a_loop(place: Path) -> Path:
    place.symlink_to(place)
    return place


def too_long(place: Path) -> Path:
    return place / ("x" * 300)


def too_deep(place: Path) -> Path:
    return place.joinpath(*["folder"] * 600)


NO_FOLDERS: list[Callable[[Path], Path]] = [a_file, inside_a_file, a_link_to_nothing, a_loop, too_long, too_deep]


@pytest.mark.parametrize("make", NO_FOLDERS, ids=lambda make: make.__name__)
def test_a_cache_that_is_no_folder_is_one_line(
    make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMA_CACHE", str(make(tmp_path / "cache")))
    source = Shapes(num_train=2, num_test=2, size=32)

    def built() -> None:
        build_folder(cache_dir() / "masks" / "one", lambda folder: None)

    def stored() -> None:
        FeatureStore(cache_dir(), source, Means()).ensure(source.samples("train"))

    for use in (built, stored):
        with pytest.raises(UserError, match="IMA_CACHE") as caught:
            use()
        assert "\n" not in str(caught.value)
    if make is a_file:
        assert (tmp_path / "cache").read_text() == "mine"

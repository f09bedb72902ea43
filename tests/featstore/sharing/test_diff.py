"""How far two stores are apart, and what people are told of it."""

from pathlib import Path

import numpy as np
import pytest

from featstore.sharing.diff import SegmentDiff, _Comparison, diff
from featstore.sharing.selection import Selection
from featstore.store import TensorLayout

from .sharing_stores import GRID, WHOLE, features_of, make_store, photos, segment


@pytest.fixture
def anna(tmp_path: Path) -> Path:
    make_store(tmp_path / "anna.zarr", photos(0, 6))
    return tmp_path / "anna.zarr"


def test_a_store_is_the_same_as_itself(anna: Path) -> None:
    found = diff(anna, anna)
    assert found.same
    assert [(s.n_rows, s.equal_share, s.mean_cosine, s.largest_error, s.within) for s in found.segments] == [
        (6, 1, 1, 0, True)
    ] * 4


def test_what_each_side_alone_has(anna: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "ben.zarr", photos(4, 9), layouts=(GRID,))
    found = diff(anna, tmp_path / "ben.zarr")
    assert not found.same
    assert (found.n_shared, found.only_here, found.only_there) == (2, photos(0, 4), photos(6, 9))
    assert (found.tensors_here, found.tensors_there) == (["whole"], [])
    assert [(s.tensor, s.segment, s.n_rows) for s in found.segments] == [("grid", "a", 2), ("grid", "b", 2)]


def test_the_figures_are_those_of_an_oracle(anna: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "ben.zarr", photos(0, 6), seed=1)
    found = diff(anna, tmp_path / "ben.zarr", selection=Selection(["whole"]))
    for index, each in enumerate(found.segments):
        one, other = (
            np.stack([WHOLE.part(features_of(p, WHOLE, seed), index) for p in photos(0, 6)])
            .reshape(6, -1)
            .astype(float)
            for seed in (0, 1)
        )
        cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        errors = np.abs(one - other).max(1)
        relative = errors / np.maximum(np.abs(one).max(1), np.abs(other).max(1))
        assert each.largest_error == pytest.approx(errors.max())
        assert each.relative_error == pytest.approx(relative.max())
        assert each.worst == f"photo {relative.argmax()}.jpg"
        assert each.lowest_cosine == pytest.approx(cosines.min())
        assert each.mean_cosine == pytest.approx(cosines.mean())
        assert each.equal_share == pytest.approx((one == other).mean())
        assert each.within is False


def test_other_identities_are_said_in_words_and_their_values_compared_all_the_same(anna: Path, tmp_path: Path) -> None:
    other = TensorLayout("grid", "stack", (segment("a", width=3, arithmetic="fp16"), segment("b")), width=6)
    make_store(tmp_path / "ben.zarr", photos(0, 6), layouts=(other,))
    a, b = diff(anna, tmp_path / "ben.zarr", selection=Selection(["grid"])).segments
    assert a.differences == ["computed in fp32 here, fp16 there"]
    assert (a.n_rows, a.within) == (6, None)
    assert (b.differences, b.n_rows) == ([], 6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_never_alike(bad: float) -> None:
    found = SegmentDiff("grid", "a", [])
    _Comparison(found).add(np.array([bad, 1.0]), np.array([5.0, 1.0]), "x.jpg")
    assert (found.relative_error, found.lowest_cosine, found.worst) == (np.inf, 0, "x.jpg")
    same = SegmentDiff("grid", "a", [])
    _Comparison(same).add(np.array([bad, 1.0]), np.array([bad, 1.0]), "x.jpg")
    assert (same.relative_error, same.lowest_cosine) == (0, 1)

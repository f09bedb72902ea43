"""Neighbours, components and maps, held against numpy."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featstore
from heads.errors import FeaturesError
from heads.explore.documents import Documents
from heads.explore.spaces import ALIKE, Spaces, choose_tensor, packed
from heads.explore.study import Study

from .conftest import PHOTO, TWIN, N, World


@pytest.fixture
def spaces(world: World) -> Spaces:
    store = featstore.open(world.store)
    return Spaces(store["alpha"], np.arange(N))


def units(features: np.ndarray) -> np.ndarray:
    rows = features.astype(np.float64)
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_neighbours_are_those_of_the_largest_cosine(world: World, spaces: Spaces) -> None:
    cosines = units(world.features[:, :16]) @ units(world.features[:, :16]).T
    np.fill_diagonal(cosines, -2)
    (space,) = spaces.read()
    for photo in range(N):
        found = space.neighbours(photo, 5)
        expected = np.argsort(-cosines[photo], kind="stable")[:5]
        if photo not in (PHOTO, TWIN):  # of which others are exactly as far: either may come first
            assert {near.photo for near in found} ^ set(expected.tolist()) <= {PHOTO, TWIN}
        assert [near.likeness for near in found] == pytest.approx(cosines[photo, expected], abs=2e-3)


def test_a_photo_without_features_is_in_no_space(world: World) -> None:
    spaces = Spaces(featstore.open(world.store)["alpha"], np.arange(10, N))  # the study leaves ten photos out
    (space,) = spaces.read()
    assert space.photos.tolist() == list(range(N - 10))
    assert N - 10 not in space
    assert 0 in space


def test_blocks_of_a_stack_are_averaged(world: World) -> None:
    spaces = Spaces(featstore.open(world.store)["grid"], np.arange(N))
    (space,) = spaces.read()
    expected = units(world.features[:, :16].reshape(N, 4, 4).astype(np.float32).mean(axis=1))
    np.testing.assert_allclose(space.units.float().numpy(), expected, atol=3e-3)


def test_components_are_the_principal_ones(world: World, spaces: Spaces) -> None:
    rows = units(world.features[:, :16])
    left, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    expected = left * values
    found = spaces.components
    assert found.shape == (N, 16)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=5e-3)
    again = Spaces(featstore.open(world.store)["alpha"], np.arange(N)).components
    np.testing.assert_array_equal(found, again)


def test_near_duplicates_are_found_and_runs_that_had_them_apart(study: Study) -> None:
    documents = Documents(study, Spaces(study.store["alpha"], study.rows))
    found = documents.photo(PHOTO)["neighbours"][0]
    assert found["photos"][0] == TWIN
    assert found["likeness"][0] > ALIKE > found["likeness"][1]
    assert found["apart"][0] == [shown.name for shown in study.runs if shown.apart(PHOTO, TWIN)] != []
    assert found["apart"][1:] == [[]] * 11  # of photos that are not alike nothing is said


@pytest.mark.parametrize("how", ["pca", "tsne"])
def test_a_map_has_a_place_for_every_photo(spaces: Spaces, how: str) -> None:
    places = spaces.map(how)  # type: ignore[arg-type]
    assert places.shape == (N, 2)
    assert np.isfinite(places).all()
    assert (places.std(axis=0) > 0).all()


@pytest.mark.filterwarnings("ignore::ImportWarning")  # of TensorFlow, which umap-learn can do without
def test_umap_is_an_extra(spaces: Spaces) -> None:
    try:
        import umap  # noqa: F401
    except ImportError:
        with pytest.raises(FeaturesError, match=r"pip install 'featstore\[umap\]'"):
            spaces.map("umap")
    else:
        assert spaces.map("umap").shape == (N, 2)


def test_the_tensor_is_the_one_that_is_named_and_never_pixels(world: World, tmp_path: Path) -> None:
    store = featstore.open(world.store)
    assert choose_tensor(store, "grid") is store["grid"]
    chosen = choose_tensor(store, None)
    assert chosen is not None
    assert chosen.layout.kind == "concat"
    with pytest.raises(FeaturesError, match=r"'alhpa' is not a tensor of .*did you mean 'alpha'"):
        choose_tensor(store, "alhpa")


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_packed_numbers_are_right_within_half_a_step(n: int, d: int, seed: int) -> None:
    import base64

    values = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    document = packed(values)
    scale = np.array(document["scale"])
    back = np.frombuffer(base64.b64decode(document["data"]), np.int8).reshape(n, d) * scale
    assert (np.abs(back - values) <= 0.51 * scale).all()

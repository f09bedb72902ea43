"""An extraction that is asked for in one call, as in a notebook."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featstore
from featstore import Config, TensorSpec, WeightsPolicy
from featstore.config import choose_tensors
from featstore.errors import BackboneError, ConfigError, LayoutError, PhotosError
from featstore.extraction.request import configure
from featstore.identity import Segment
from featstore.photos.views import resize

from ..conftest import TINY, VIEWS

FEW = {"engine": "eager", "weights": "random:0"}
TOML = "[views.{name}]\nsize = [128, 96]\ngrid = [{rows}, {columns}]\n"


@pytest.fixture
def here(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos, and with a featstore.toml that makes the views small."""
    monkeypatch.chdir(tmp_path)
    views = [TOML.format(name=name, rows=view.rows, columns=view.columns) for name, view in VIEWS.items()]
    Path("featstore.toml").write_text("\n".join(views))
    return tmp_path


def test_photos_and_backbones_are_enough(here: Path) -> None:
    summary = featstore.extract("photos", backbones=[*TINY], store="s.zarr", views="whole", **FEW)
    assert (summary.n_computed, summary.failed) == (10, [])
    store = featstore.open("s.zarr")
    wanted = choose_tensors(featstore.find_config(), ",".join(TINY), {}, views=("whole",)).tensors
    assert list(store) == [spec.name for spec in wanted]
    again = featstore.extract(Path("photos"), ",".join(TINY), Path("s.zarr"), views=["whole"], **FEW)
    assert (again.n_computed, again.n_reused) == (0, 10)


def test_without_views_the_tensors_are_those_of_the_command(here: Path) -> None:
    featstore.extract("photos", TINY[0], "s.zarr", **FEW)
    wanted = choose_tensors(featstore.find_config(), TINY[0], {}).tensors
    assert sorted(featstore.open("s.zarr")) == sorted(spec.name for spec in wanted)


def test_a_configuration_says_everything_and_words_beside_it_change_it(tiny_config: Config, tmp_path: Path) -> None:
    featstore.extract(tiny_config)
    assert sorted(featstore.open(tiny_config.store)) == sorted(spec.name for spec in tiny_config.tensors)
    other = tmp_path / "other.zarr"
    featstore.extract(tiny_config, TINY[0], other, views="whole", dtype="float32")
    (tensor,) = featstore.open(other).tensors.values()
    assert tensor.dtype == np.float32
    assert len(tensor.layout.segments) == 1


SEGMENT = f"{TINY[0]}:max@whole"


@pytest.mark.parametrize("tensors", [f"mine=concat:{SEGMENT}", TensorSpec("mine", "concat", (SEGMENT,))])
def test_a_tensor_of_its_own(here: Path, tensors: Any) -> None:
    featstore.extract("photos", store="s.zarr", tensors=tensors, **FEW)
    assert list(featstore.open("s.zarr")) == ["mine"]


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ("random:3", {"*": "random:3"}),
        (["resnet50=random:1", "lite0=r.pth"], {"resnet50": "random:1", "tf_efficientnet_lite0": "r.pth"}),
        ({"lite0": "random:2"}, {"tf_efficientnet_lite0": "random:2"}),
        (WeightsPolicy("w", {"*": "random:4"}), {"*": "random:4"}),
    ],
)
def test_weights_are_said_in_four_ways(weights: Any, named: dict[str, str], tmp_path: Path) -> None:
    config = configure(Config(), weights=weights, weights_folder=tmp_path)
    assert config.weights == WeightsPolicy(tmp_path, named)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"backbones": [3]}, ConfigError, "3 is no name; say names as"),
        ({"backbones": []}, ConfigError, "no backbones named"),
        ({"photos": ["a.jpg"], "backbones": "lite0"}, PhotosError, "photos are a list; name the folder"),
        ({"backbones": "lite0", "views": "hole"}, ConfigError, "unknown view 'hole'.*did you mean 'whole'"),
        ({"backbones": "packaged", "views": "whole"}, ConfigError, "the tensors of 'packaged' have theirs"),
        ({"backbones": "lite0", "dtype": "float8"}, ConfigError, "float8"),
        ({"backbones": "lite0", "weights": "file.pth"}, ConfigError, "NAME=FILE"),
        ({"backbones": "lite0", "weights": {"nonet": "random:0"}}, BackboneError, "unknown backbone 'nonet'"),
        ({"tensors": "mine"}, ConfigError, "not of the form NAME=LAYOUT"),
    ],
)
def test_what_makes_no_sense_is_answered_before_anything_is_written(
    here: Path, said: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        featstore.extract(**{"photos": "photos", "store": "s.zarr", **said})
    assert not Path("s.zarr").exists()


def test_a_folder_whose_configuration_is_about_other_photos_asks_for_a_store(here: Path) -> None:
    Path("featstore.toml").write_text('photos = "others"\n')
    with pytest.raises(ConfigError, match="name another --store"):
        featstore.extract("photos", "lite0")


def test_whoever_is_told_of_the_progress_is_told_of_all_of_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    how = {"views": "whole", **FEW}
    featstore.extract("photos", TINY[0], "s.zarr", progress=lambda *each: told.append(each), **how)
    assert ("extract", 10, 10) in told
    featstore.extract("photos", TINY[1], "t.zarr", progress=False, **how)
    assert capsys.readouterr() == ("", "")


def test_a_summary_says_what_was_done_and_what_failed(here: Path) -> None:
    Path("photos", "bad <b>.jpg").write_bytes(b"no photo")
    summary = featstore.extract("photos", TINY[0], "s.zarr", views="whole", **FEW)
    assert "11 images: 10 done, 0 reused, 1 failed" in repr(summary)
    assert "<td>bad &lt;b&gt;.jpg</td>" in summary._repr_html_()
    assert "\n" not in repr(summary)


def test_a_network_itself_is_a_backbone(tiny_config: Config, tmp_path: Path) -> None:
    class Mine(torch.nn.Module):
        input_size = 32

        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.conv = torch.nn.Conv2d(3, 8, 7, 4)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.conv(pixels).relu().mean((2, 3))  # type: ignore[no-any-return]

    assert tiny_config.photos is not None
    place = tmp_path / "mine.zarr"
    made = featstore.extract(tiny_config.photos, Mine(0), place, progress=False)
    assert made.n_computed == 10
    stored = featstore.open(place)["model"]
    assert stored.shape == (10, 8)
    image = featstore.read_photo(tiny_config.photos / featstore.open(place).images.paths[3])
    (segment,) = tiny_config.segments(stored.layout.segments[0].name, default_view="model")
    assert isinstance(segment, Segment)
    pixels = torch.from_numpy(resize(image, segment.view, b"").copy()).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (segment.card.mean, segment.card.std))
    with torch.inference_mode():
        expected = Mine(0)((pixels - mean) / std)
    np.testing.assert_allclose(stored.read([3]), expected, rtol=2e-3, atol=1e-3)
    assert featstore.extract(tiny_config.photos, [Mine(0)], place, progress=False).n_computed == 0
    with pytest.raises(LayoutError):
        featstore.extract(tiny_config.photos, [Mine(1)], place, progress=False)

"""Codebooks: words of hand-made features, learnt from photos; and features that are told in them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import featstore
from featstore.backbones import WeightsPolicy
from featstore.config import Config, TensorSpec
from featstore.errors import ConfigError, MissingWeightsError, PhotosError, UnknownBackboneError, WeightsError
from featstore.extraction.codebook import learn_codebook
from featstore.photos.views import View


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> Config:
    return Config(
        photos=photos,
        store=tmp_path / "features.zarr",
        weights=WeightsPolicy(tmp_path / "weights"),
        views={"small": View((64, 64)), "tiny": View((8, 8))},
        tensors=(TensorSpec("words", "concat", ("hand/hog", "hand/jpeg"), view="small"),),
    )


def test_words_are_learnt_the_same_each_time_and_their_digest_is_in_the_identity(config: Config) -> None:
    with pytest.raises(MissingWeightsError, match=r"featstore codebook hog PHOTOS --out .*/hand--hog-1\.safetensors"):
        featstore.extract(config)
    learnt = learn_codebook(config, "hog", view="small")
    assert (learnt.n_words, learnt.n_photos, learnt.n_descriptors) == (256, 10, 10 * 7 * 7)
    words = load_file(learnt.file)["words"]
    assert words.shape == (256, 36)
    again = learn_codebook(config, "hand/hog-1", view="small", out=learnt.file.with_name("again.safetensors"))
    assert again.sha256 == learnt.sha256
    other = learn_codebook(config, "hog", view="small", seed=1, out=learnt.file.with_name("other.safetensors"))
    assert other.sha256 != learnt.sha256
    featstore.extract(config)
    tensor = featstore.open(config.store)["words"]
    assert tensor.layout.segments[0].identity["weights"] == {"sha256": learnt.sha256}
    lengths = np.linalg.norm(np.asarray(tensor.read(np.arange(10)))[:, :5376].astype(float), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-3)


def test_a_codebook_that_is_there_stays(config: Config) -> None:
    learnt = learn_codebook(config, "hog", view="small")
    before = learnt.file.read_bytes()
    with pytest.raises(WeightsError, match="exists: features that were made with it could not be made again"):
        learn_codebook(config, "hog", view="small", seed=1)
    assert learnt.file.read_bytes() == before
    learn_codebook(config, "hog", view="small", seed=1, replace=True)
    assert learnt.file.read_bytes() != before


def test_photos_that_cannot_be_read_are_passed_over_and_named(config: Config, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no photo")
    learnt = learn_codebook(config, "hog", view="small")
    assert list(learnt.failed) == ["broken.jpg"]
    assert learnt.n_photos == 10


def test_what_makes_no_codebook(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hand/gist-1 needs no codebook; groups that are told in words are .*hog-1"):
        learn_codebook(config, "gist", view="small")
    with pytest.raises(UnknownBackboneError, match="unknown backbone 'hand/hogg'"):
        learn_codebook(config, "hogg", view="small")
    with pytest.raises(ConfigError, match="unknown --view 'smal'; did you mean 'small'"):
        learn_codebook(config, "hog", view="smal")
    with pytest.raises(ConfigError, match="hand/hog-1 needs pictures of 16x16 pixels or more"):
        learn_codebook(config, "hog", view="tiny")
    with pytest.raises(ConfigError, match="no photos to learn from; say featstore codebook hog PHOTOS"):
        learn_codebook(replace(config, photos=None), "hog", view="small")
    with pytest.raises(WeightsError, match=r"a codebook is a file that ends in \.safetensors"):
        learn_codebook(config, "hog", view="small", out=tmp_path / "words.npy")
    with pytest.raises(PhotosError, match="49 descriptors do not make 256 words; name more photos"):
        learn_codebook(config, "hog", view="small", most=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    for i in range(9):
        Image.new("RGB", (99, 99), (i, i, i)).save(empty / f"{i}.png")
    with pytest.raises(PhotosError, match="441 descriptors do not make 256 words"):
        learn_codebook(replace(config, photos=empty), "hog", view="small")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (np.ones((256, 128), np.float32), r"does not fit 'hand/hog-1' \(hog-1\): 1 of another shape \(words\)"),
        (np.full((256, 36), np.nan, np.float32), "words holds values that are not finite"),
    ],
)
def test_the_codebook_of_another_group_or_of_no_numbers(
    config: Config, tmp_path: Path, words: np.ndarray, message: str
) -> None:
    (tmp_path / "weights").mkdir()
    save_file({"words": words}, tmp_path / "weights" / "hand--hog-1.safetensors")
    with pytest.raises(WeightsError, match=message):
        featstore.extract(config)

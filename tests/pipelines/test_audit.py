"""The audit: what a classifier with known answers sees in photos of known emotions, and how sure that is."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import entropy as scipy_entropy
from scipy.stats import false_discovery_control, fisher_exact
from typer.testing import CliRunner

import featstore
import featstore.cli
from featstore.store import ImageState, NewImages, RowState, SeenImages, Writer
from featstore.store.format.layout import StoredSegment, TensorLayout
from pipelines.__main__ import app
from pipelines.class_names import known_names, read_names
from pipelines.diversity import count, entropy, most_frequent, n_for_half, over_frequent, rarefied

JOY, FEAR = [0, 0, 0, 0, 0, 1, 2, 4], [0, 3, 3, 3]
PATHS = [f"{at:02}.jpg" for at in range(len(JOY) + len(FEAR))]


def audit(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def found(*arguments: object) -> dict[str, Any]:
    done = audit(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def refused(*arguments: object) -> str:
    done = audit(*arguments)
    assert (done.exit_code, "Traceback" in done.output) == (1, False), done.output
    return str(done.stderr)


def write_logits(
    place: Path, logits: NDArray[np.float32], *, pooling: str = "logits", name: str = "stub:logits"
) -> None:
    """A store in which other features stand before what a network said of each photo."""
    values = np.hstack([np.full((len(logits), 3), 99, np.float32), logits])
    segments = tuple(
        StoredSegment(called, {"pooling": each, "dtype": "float32", "weights": {"sha256": called}}, 1, width)
        for called, each, width in (("net", "own", 3), (name, pooling, logits.shape[1]))
    )
    n = len(logits)
    with Writer(place, block_rows=8) as writer:
        digests = np.random.default_rng(0).integers(0, 256, (n, 32)).astype(np.uint8)
        writer.add_images(NewImages(PATHS[:n], digests, [1] * n, [1] * n))
        writer.ensure_tensor(TensorLayout("both", "concat", segments), "float32")
        for block, start in enumerate(range(0, n, 8)):
            rows = list(range(start, min(start + 8, n)))
            present = np.full(len(rows), RowState.PRESENT, np.uint8)
            seen = SeenImages(rows, [(4, 4)] * len(rows), [ImageState.READABLE] * len(rows), [""] * len(rows))
            writer.commit(block, {"both": (values[rows], present)}, seen)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Twelve photos: a stub says five classes of them, and of the sixth two as loudly."""
    logits = np.full((len(PATHS), 5), -1, np.float32)
    logits[np.arange(len(PATHS)), JOY + FEAR] = 2
    logits[5, 3] = 2
    write_logits(tmp_path / "s.zarr", logits)
    table = pd.DataFrame({"path": PATHS, "emotion": ["joy"] * len(JOY) + ["fear"] * len(FEAR)})
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "names.txt").write_text("/a/abbey 0\n/b/bar 1\n/c/church/outdoor 3\n/c/cave 2\n/d/dam 4\n")
    return tmp_path


def test_a_stub_with_known_answers_is_counted_by_emotion(desk: Path) -> None:
    said = found(desk / "s.zarr", "--labels", desk / "labels.csv", "--names", desk / "names.txt")
    (network,) = said["classifiers"]
    assert (network["backbone"], network["n_classes"], network["n_smallest"], network["n_tied"]) == (
        "stub:logits",
        5,
        4,
        1,
    )
    fear, joy = network["emotions"]
    assert (fear["name"], fear["n_photos"], fear["n_distinct"], fear["n_for_half"]) == ("fear", 4, 2, 1)
    assert (joy["name"], joy["n_photos"], joy["n_distinct"], joy["n_for_half"]) == ("joy", 8, 4, 1)
    assert fear["most_frequent"] == {"church/outdoor": 3, "abbey": 1}
    assert list(joy["most_frequent"].items()) == [("abbey", 5), ("bar", 1), ("cave", 1), ("dam", 1)]  # the tie is bar
    assert joy["entropy"] == pytest.approx(scipy_entropy([5, 1, 1, 1], base=2))
    assert (fear["rarefied"], joy["rarefied"]) == (2, pytest.approx(drawn(JOY, 4)))
    assert said["published"][0] == {"n_distinct": 968, "n_photos": 47_000}
    assert "1 photo with two classes at the top" in "".join(said["differences"])


def test_what_a_person_reads(desk: Path) -> None:
    done = audit(desk / "s.zarr", "--labels", desk / "labels.csv")
    assert done.exit_code == 0
    assert "stub:logits (tensor both): the class said first, of 5\n" in done.stdout
    assert "joy           8        4" in done.stdout
    assert "0 5, 1 1, 2 1, 4 1" in done.stdout  # no names are known
    assert "73,100      989" in done.stdout
    assert "the published figures are of other photos, other counts and another network" in done.stdout


def drawn(classes: list[int], n: int) -> float:
    """The mean number of distinct classes over all ways to draw n photos."""
    return float(np.mean([len(set(some)) for some in combinations(classes, n)]))


@pytest.mark.parametrize("classes", [JOY, FEAR, [0] * 7, list(range(6)), [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]])
def test_rarefied_is_the_mean_over_all_ways_to_draw(classes: list[int]) -> None:
    counts = np.bincount(classes, minlength=12)
    for n in range(1, len(classes) + 1):
        assert rarefied(counts, n) == pytest.approx(drawn(classes, n))


def test_rarefied_of_as_many_photos_as_the_paper_has() -> None:
    counts = np.random.default_rng(0).multinomial(73_100, np.random.default_rng(1).dirichlet(np.full(1000, 0.3)))
    draws = np.random.default_rng(2)
    simulated = [np.count_nonzero(draws.multivariate_hypergeometric(counts, 32_100, method="count")) for _ in range(20)]
    assert rarefied(counts, 32_100) == pytest.approx(np.mean(simulated), abs=4 * np.std(simulated) / 20**0.5)
    assert rarefied(counts, 73_100) == pytest.approx(np.count_nonzero(counts))


def test_the_most_frequent_of_equals_is_the_lower_number_and_half_is_reached_exactly() -> None:
    counts = np.array([1, 3, 0, 3, 1])
    assert most_frequent(counts, 3) == [1, 3, 0]
    assert most_frequent(counts, 9) == [1, 3, 0, 4]
    assert (n_for_half(counts), n_for_half(np.array([4, 2, 2])), n_for_half(np.array([7]))) == (2, 1, 1)
    assert (entropy(np.array([8, 0])), entropy(np.array([2, 2, 2, 2]))) == (0, 2)


def test_over_frequent_is_fishers_exact_test_by_holm() -> None:
    counts = np.array([[9, 1, 0, 2, 0], [1, 4, 0, 2, 3], [0, 6, 0, 1, 1]])
    p = np.ones((3, 5))
    for at in range(3):
        for each in (0, 1, 3, 4):  # nobody has class 2
            inside = [counts[at, each], counts[at].sum() - counts[at, each]]
            outside = [counts[:, each].sum() - inside[0], counts.sum() - counts[:, each].sum() - inside[1]]
            p[at, each] = fisher_exact([inside, outside], alternative="greater").pvalue
    some = np.delete(p, 2, 1)
    expected = np.empty(some.size)
    largest = 0.0
    for rank, at in enumerate(np.argsort(some, axis=None)):
        largest = max(largest, min(1, some.flat[at] * (some.size - rank)))
        expected[at] = largest
    np.testing.assert_allclose(np.delete(over_frequent(counts), 2, 1), expected.reshape(some.shape), rtol=1e-9)
    assert (over_frequent(counts)[:, 2] == 1).all()
    assert (over_frequent(counts) >= false_discovery_control(some, axis=None).min()).all()


def test_over_frequent_finds_what_is_planted_and_little_else() -> None:
    """Of 100 tables without any relation one in twenty may have a p below .05; the planted class has it always."""
    rng = np.random.default_rng(0)
    false, missed = 0, 0
    popularity = rng.dirichlet(np.full(200, 0.5))
    for _ in range(100):
        classes, groups = rng.choice(200, 900, p=popularity), rng.integers(0, 6, 900)
        false += bool((over_frequent(count(groups, classes, 6, 200)) < 0.05).any())
        classes[np.flatnonzero(groups == 2)[:25]] = 7
        missed += over_frequent(count(groups, classes, 6, 200))[2, 7] >= 0.05
    assert false <= 9  # 5 expected at most; more than 9 has a probability of .03 even then
    assert missed == 0


# ---- names


def test_names_are_those_of_imagenet_of_the_users_file_or_numbers(tmp_path: Path) -> None:
    assert known_names(1000)[644] == "matchstick"
    assert (known_names(1000)[134], known_names(1000)[517]) == ("crane (134)", "crane (517)")
    assert len(set(known_names(1000))) == 1000
    assert known_names(3) == ["0", "1", "2"]
    (tmp_path / "plain.txt").write_text("a red car\na dog\n\n")
    assert read_names(tmp_path / "plain.txt") == ["a red car", "a dog"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/a/abbey 0\n/b/bar 2\n", "its 2 numbers are not 0 to 1"),
        ("one\ntwo\n", "has 2 names; the networks have 5 classes"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_names_that_do_not_fit_are_refused(desk: Path, text: str | bytes, told: str) -> None:
    (desk / "bad.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert told in refused(desk / "s.zarr", "--labels", desk / "labels.csv", "--names", desk / "bad.txt")


# ---- photos, and what is missing


def test_photos_become_a_store_of_logits_and_a_store_without_says_how(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in PATHS[:6]:
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(tmp_path / "photos" / name, quality=95)
    labels = tmp_path / "labels.csv"
    pd.DataFrame({"path": [*PATHS[1:6], "no.jpg"], "emotion": ["joy", "fear"] * 3}).to_csv(labels, index=False)
    networks = ("--backbones", "test_resnet", "--weights", "random:0")
    made = tmp_path / "made.zarr"
    of_photos = found(tmp_path / "photos", "--labels", labels, "--store", made, *networks)
    assert "1 label without a photo, left out: no.jpg" in of_photos["differences"]
    assert f"1 photo without a label, left out: {PATHS[0]}" in of_photos["differences"]
    (network,) = of_photos["classifiers"]
    assert (network["backbone"], network["n_classes"]) == ("test_resnet:logits", 1000)
    assert sum(each["n_photos"] for each in network["emotions"]) == 5
    assert found(made, "--labels", labels)["classifiers"] == of_photos["classifiers"]
    assert featstore.open(made)["test_resnet_logits"].dtype == np.float32  # float16 would make classes equal

    # Another network stands beside it.
    both = ("--store", made, "--weights", "random:0", "--backbones", "test_resnet,test_efficientnet")
    (same, more) = found(tmp_path / "photos", "--labels", labels, *both)["classifiers"]
    assert (same, more["backbone"]) == (network, "test_efficientnet:logits")

    # A store of other features: the command that it says makes the logits, which are the same.
    said = ["extract", tmp_path / "photos", "--tensor", "pixels=pixels:pixels@centre", "--store", tmp_path / "o.zarr"]
    assert CliRunner().invoke(featstore.cli.app, list(map(str, said))).exit_code == 0
    told = refused(tmp_path / "o.zarr", "--labels", labels, "--backbones", "test_resnet")
    assert "has no logits of whole photos by test_resnet; make them: featstore extract PHOTOS" in told
    command = told.partition("make them: featstore ")[2].replace("PHOTOS", str(tmp_path / "photos")).split()
    assert CliRunner().invoke(featstore.cli.app, [*command, "--weights", "random:0"]).exit_code == 0
    again = found(tmp_path / "o.zarr", "--labels", labels, "--backbones", "test_resnet")
    assert again["classifiers"] == of_photos["classifiers"]


def test_what_cannot_be_audited_is_refused_in_words(desk: Path) -> None:
    labels = desk / "labels.csv"
    assert "nowhere does not exist; name a folder of photos, or a store" in refused("nowhere", "--labels", labels)
    assert "has no column 'mood'" in refused(desk / "s.zarr", "--labels", labels, "--column", "mood")
    pd.DataFrame({"path": PATHS, "emotion": "joy"}).to_csv(desk / "one.csv", index=False)
    assert "has one class, 'joy'; two are needed" in refused(desk / "s.zarr", "--labels", desk / "one.csv")
    write_logits(desk / "own.zarr", np.zeros((12, 4), np.float32), pooling="own")
    told = "--tensor tf_efficientnet_lite0_logits=concat:tf_efficientnet_lite0:logits@model --dtype float32 --store"
    assert told in refused(desk / "own.zarr", "--labels", labels)


def test_a_network_of_a_store_is_named_as_it_is_extracted(desk: Path) -> None:
    logits = np.eye(12, dtype=np.float32)
    write_logits(desk / "t.zarr", logits, name="torchvision:squeezenet1_1/IMAGENET1K_V1:logits")
    named = (desk / "t.zarr", "--labels", desk / "labels.csv", "--backbones")
    for name in ("torchvision:squeezenet1_1", "torchvision:squeezenet1_1/IMAGENET1K_V1:logits"):
        (network,) = found(*named, name)["classifiers"]
        assert network["n_classes"] == 12
    assert "has no logits of whole photos by test_resnet" in refused(*named, "test_resnet,torchvision:squeezenet1_1")

"""Photos of the same bytes are never on both sides of a split."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.store import ImageState, NewImages, RowState, SeenImages, Writer
from heads import Plan, read_labels, train
from heads.errors import LabelsError
from heads.labels.joining import UNKNOWN, keep_copies_together
from heads.splits.validation import Validation

from ..conftest import layout_of


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["x", "y", "z", "w", UNKNOWN])), min_size=1))
def test_groups_with_a_photo_in_common_become_one(photos: list[tuple[str, str]]) -> None:
    groups, digests = [group for group, _ in photos], [digest for _, digest in photos]
    merged, n_copies = keep_copies_together(groups, digests, [str(i) for i in range(len(photos))])
    assert merged is not None
    # The oracle: join by group and by digest until nothing changes.
    label = list(range(len(photos)))
    for _ in photos:
        for i, (group, digest) in enumerate(photos):
            same = [j for j, (g, d) in enumerate(photos) if g == group or (d == digest != UNKNOWN)]
            lowest = min(label[j] for j in [i, *same])
            for j in [i, *same]:
                label[j] = lowest
    for i in range(len(photos)):
        for j in range(len(photos)):
            assert (merged[i] == merged[j]) == (label[i] == label[j])
    known = [digest for digest in digests if digest != UNKNOWN]
    assert n_copies == sum(known.count(digest) > 1 for digest in known)


def test_without_copies_there_are_no_groups() -> None:
    assert keep_copies_together(None, ["a", "b", UNKNOWN, UNKNOWN], list("pqrs")) == (None, 0)
    assert keep_copies_together(None, ["a", "b", "a"], list("pqr")) == (["p", "q", "p"], 2)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Thirty photos stored twice under other names: noise, of which ridge could only know the other copy."""
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(30, 200)).astype(np.float16), 2, axis=0)
    digests = np.repeat(rng.integers(0, 255, (30, 32), np.uint8), 2, axis=0)
    names = [f"{i:02}.jpg" for i in range(60)]
    with Writer(tmp_path / "s.zarr", block_rows=64) as writer:
        writer.add_images(NewImages(names, digests, [1] * 60, [1] * 60))
        writer.ensure_tensor(layout_of("whole", (200,), (), "first"), "float16")
        seen = SeenImages(list(range(60)), [(4, 4)] * 60, [ImageState.READABLE] * 60, [""] * 60)
        writer.commit(0, {"whole": (values, np.full(60, RowState.PRESENT, np.uint8))}, seen)
    table = pd.DataFrame({"path": names, "beauty": np.repeat(rng.uniform(1, 7, 30), 2), "part": ["train", "test"] * 30})
    table.to_csv(tmp_path / "labels.csv", index=False)
    labels = read_labels(tmp_path / "labels.csv", tasks=["beauty"], scales="1:7")
    return Plan(system="ridge", store=tmp_path / "s.zarr", labels=labels, out=tmp_path / "run")


def test_a_copy_is_not_learnt_from_while_the_other_is_tested(plan: Plan) -> None:
    told = []
    run = train(plan, on_join=told.append)
    assert told[0].n_copies == 60
    assert (run.folds.groupby("digest")["fold"].nunique() == 1).all()
    assert run.metrics["beauty"]["pearson"]["mean"] < 0.5  # it is .98 if copies part


def test_a_given_split_that_parts_copies_is_refused(plan: Plan) -> None:
    labels = read_labels(plan.labels.files, tasks=["beauty"], scales="1:7", split="part")
    with pytest.raises(LabelsError, match="parts 30 groups"):
        train(replace(plan, labels=labels))
    with pytest.raises(LabelsError, match="contradict each other"):
        train(replace(plan, labels=labels, validation=Validation(hold_out=0.2)))

"""Workers that lie: what they send back is held against what they were asked before anything is written."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from featstore.errors import ClusterError
from featstore.extraction.cluster import check_answer
from featstore.extraction.pipeline import PhotoJob, PhotoResult
from featstore.extraction.worker import Computed

JOBS = [PhotoJob(row, f"{row}.jpg", bytes(32), frozenset({"a"})) for row in (4, 5)]
SHAPES = {"a": ((2, 3), np.dtype("float16"))}
RIGHT = PhotoResult(4, (60, 40), {"a": np.zeros((2, 3), np.float16)})
OTHER = replace(RIGHT, row=5)
LIES: dict[str, Any] = {
    "no result": "rows",
    "a photo of others": [RIGHT, replace(RIGHT, row=99)],
    "a photo twice": [RIGHT, RIGHT],
    "one too few": [RIGHT],
    "a shape": [replace(RIGHT, features={"a": np.zeros((2, 4), np.float16)}), OTHER],
    "a dtype": [replace(RIGHT, features={"a": np.zeros((2, 3), np.float32)}), OTHER],
    "objects": [replace(RIGHT, features={"a": np.full((2, 3), None)}), OTHER],
    "a name": [replace(RIGHT, features={"../b": np.zeros((2, 3), np.float16)}), OTHER],
    "nothing": [replace(RIGHT, features={}), OTHER],
    "a size": [replace(RIGHT, size=(-1, 10**12)), OTHER],
    "a reason": [PhotoResult(4, error="x" * 10**6), OTHER],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_the_run_in_words(lie: str) -> None:
    with pytest.raises(ClusterError, match=r"a worker sent .* for 4\.jpg and 1 more"):
        check_answer(Computed("w", LIES[lie], {}, 1), JOBS, SHAPES)


def test_the_truth_and_a_photo_that_cannot_be_read_are_taken() -> None:
    check_answer(Computed("w", [OTHER, PhotoResult(4, error="damaged")], {}, 1), JOBS, SHAPES)

"""docs/notebook.ipynb is run from start to end in a kernel of its own, and then once more, as a reader would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
pytestmark = pytest.mark.slow

Round = dict[str, list[Any]]
"""By the source of a cell, its outputs."""


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Round, Round]]:
    """All cells twice in the same kernel, far from any model hub."""
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, 4)
    folder = tmp_path_factory.mktemp("notebook")
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        done = []
        with client.setup_kernel():
            for _ in range(2):
                outputs = {}
                for number, cell in enumerate(notebook.cells):
                    if cell.cell_type == "code":
                        client.execute_cell(cell, number)
                        outputs[cell.source] = list(cell.outputs)
                done.append(outputs)
        yield done[0], done[1]


def shown(outputs: Round, code: str) -> str:
    """What a reader sees below the one cell that has this code, HTML where there is any."""
    (found,) = [each for source, each in outputs.items() if code in source]
    return "\n".join(each.get("text") or each["data"].get("text/html") or each["data"]["text/plain"] for each in found)


def test_every_cell_shows_something_and_none_warns(rounds: tuple[Round, Round]) -> None:
    for outputs in rounds:
        for source, found in outputs.items():
            assert found, f"nothing is shown by\n{source}"
            assert not [each for each in found if each.output_type == "error" or each.get("name") == "stderr"], source


def test_the_bar_of_an_extraction_ends_at_all_of_it(rounds: tuple[Round, Round]) -> None:
    first, second = (shown(each, "featstore.extract(") for each in rounds)
    assert '<progress value="120" max="120"' in first
    assert "extract: 120/120, 100%" in first
    assert "120 images: 120 done, 0 reused, 0 failed" in first
    assert "120 images: 0 done, 120 reused, 0 failed; nothing to compute" in second
    assert "<progress" not in second.replace("list: ", "")  # nothing that was worth a bar


def test_things_say_what_they_are_in_tables(rounds: tuple[Round, Round]) -> None:
    for outputs in rounds:
        assert "<td>whole</td><td>concat</td><td>120 x 1280</td>" in shown(outputs, 'featstore.open("')
        assert "concat (image 120, feature 1280), float16, 120 of 120 rows present" in shown(
            outputs, "features = store["
        )
        assert "<td>tf_efficientnet_lite0</td>" in shown(outputs, "list_backbones")
        assert "(120, 1280)" in shown(outputs, "np.asarray")
        assert "china/china-01.jpg" in shown(outputs, ".corr()")


def test_a_head_shows_its_figures_and_is_not_trained_twice(rounds: tuple[Round, Round]) -> None:
    first, second = (shown(each, '"ridge", store') for each in rounds)
    for page in (first, second):
        assert "17 groups by &#x27;source&#x27; kept together" in page
        assert "<td>colourfulness</td>" in page
        assert "95 %: of the method, on another sample of photos to learn from" in page
    assert "train: 50/50, 100%" in first
    assert "<progress" not in second
    table = first[first.index("<table") :]
    assert table == second[second.index("<table") :]
    assert "<th>difference</th>" in shown(rounds[1], "heads.compare")


def test_the_file_is_small_and_keeps_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
    assert NOTEBOOK.stat().st_size < 20_000

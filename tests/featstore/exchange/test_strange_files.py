"""Files of features that somebody has made to fill the memory, to read other files, to run code or to hang."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from featstore.errors import ConfigError, ExchangeError
from featstore.exchange.concepts import read_prompts
from featstore.exchange.formats.registry import read_table
from featstore.exchange.formats.table import FeatureFile
from featstore.sharing.selection import Selection


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def read_all(file: Path, **options: Any) -> int:
    return sum(map(len, read_table(FeatureFile(file, **options)).blocks(100)))


def test_an_npz_that_unpacks_to_a_thousand_times_as_much_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out, out.open("features.npy", "w") as member:
        member.write(npy(np.zeros((1 << 17, 512), np.float32)))
        for _ in range(3):
            member.write(bytes(1 << 28))
    with pytest.raises(ExchangeError, match="unpacks to"):
        read_table(FeatureFile(bomb))


def test_a_header_that_claims_more_than_there_is_is_damage(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "a.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as out:
        out.writestr("features.npy", data)
        out.writestr("path.npy", npy(np.array(["a"])))
    (tmp_path / "p.txt").write_text("a\n")
    with pytest.raises(ExchangeError, match="cannot be read"):
        read_table(FeatureFile(tmp_path / "a.npy", paths=tmp_path / "p.txt"))
    with pytest.raises(ExchangeError, match="cannot be read"):
        read_table(FeatureFile(tmp_path / "a.npz"))


def test_an_hdf5_reads_no_other_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    secret, file = tmp_path / "secret", tmp_path / "a.h5"
    secret.write_bytes(bytes(range(32)))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["features"] = np.ones((2, 4))
    with h5py.File(file, "w") as out:
        out["path"] = ["a", "b"]
        out.create_dataset("features", (2, 4), "f4", external=[(str(secret), 0, 32)])
        out["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "features")
        layout = h5py.VirtualLayout((2, 4), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "features", (2, 4))
        out.create_virtual_dataset("virtual", layout)
    for name in ("features", "link", "virtual"):
        with pytest.raises(ExchangeError, match=f"no array of numbers '{name}'"):
            read_table(FeatureFile(file, dataset=name))


def test_rows_and_chunks_that_are_claimed_take_no_memory(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    file = tmp_path / "a.h5"
    with h5py.File(file, "w") as out:
        out.create_dataset("rows", (10**12, 4), "f4", chunks=(100, 4))
        out.create_dataset("chunk", (10**7, 100), "f4", chunks=(10**7, 1))
        out.create_dataset("fine", (10**7, 4), "f4", chunks=(100, 4))
        out.create_dataset("path", (10**7,), "S1000", chunks=(100,))
    for name, said in (("rows", "1,000,000,000,000 rows"), ("chunk", "in one chunk"), ("fine", "the paths have more")):
        with pytest.raises(ExchangeError, match=said):
            read_table(FeatureFile(file, dataset=name))


class _Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_a_chunk_of_a_zarr_that_does_not_unpack_is_damage(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("path", shape=(2,), chunks=(2,), dtype="string")[:] = np.array(["a.jpg", "b.jpg"], object)
    group.create_array("features", data=np.ones((2, 3), np.float32))
    chunk = tmp_path / "a.zarr" / "features" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(ExchangeError, match="features"):
        read_all(tmp_path / "a.zarr")


@pytest.mark.parametrize("where", ["filters", "compressor"])
def test_a_zarr_with_pickle_in_it_runs_nothing(tmp_path: Path, where: str) -> None:
    folder, ran = tmp_path / "a.zarr", tmp_path / "ran"
    features: dict[str, Any] = {"zarr_format": 2, "shape": [2, 3], "chunks": [2, 3], "dtype": "<f4", "order": "C"}
    features |= {"compressor": None, "filters": None, "fill_value": 0}
    said = {**features, where: [{"id": "pickle"}] if where == "filters" else {"id": "pickle"}}
    for name, facts in (("features", said), ("path", {**said, "shape": [2], "chunks": [2], "dtype": "|O"})):
        (folder / name).mkdir(parents=True)
        (folder / name / ".zarray").write_text(json.dumps(facts))
        (folder / name / ("0.0" if name == "features" else "0")).write_bytes(pickle.dumps(_Evil(ran)))
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(ExchangeError):
        read_all(folder)
    assert not ran.exists()


def test_deep_or_giant_lists_of_a_csv_are_refused(tmp_path: Path) -> None:
    for text in ("[" * 100_000, f"[{'1' * 400}]", f"[{'1' * 5000}]", '{"a": 1}', "[[1], [1, 2]]"):
        (tmp_path / "a.csv").write_text(f'path,x\na.jpg,"[1]"\nb.jpg,"{text}"\n'.replace('"a"', '""a""'))
        with pytest.raises(ExchangeError, match="line 3"):
            read_all(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open("wb") as out:
        out.truncate(1 << 40)
    with pytest.raises(ExchangeError, match="a line has more"):
        read_table(FeatureFile(tmp_path / "a.csv"))


def test_keys_of_a_parquet_are_not_unpacked_before_their_length_is_known(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    keys = arrow.array(["y" * (1 << 20)]).dictionary_encode().take(arrow.array(np.zeros(4000, int)))  # 4 GB
    about = json.dumps({"tensors": {"x": {"row_shape": [-1, -2]}}})
    table = arrow.table({"path": keys, "x": [[1.0, 2.0]] * 4000}).replace_schema_metadata({"featstore": about})
    parquet.write_table(table, file)
    with pytest.raises(ExchangeError, match="the paths have more"):
        read_table(FeatureFile(file))


@pytest.mark.parametrize("about", ["[" * 100_000, "{}", '{"tensors": {"x": {"row_shape": [-1, -2]}}}', "\\"])
def test_what_a_parquet_says_of_its_axes_is_a_hint(tmp_path: Path, about: str) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"path": ["a"], "x": [[1.0, 2.0]]}).replace_schema_metadata({"featstore": about})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_table(FeatureFile(tmp_path / "a.parquet")).row_shape == (2,)


def test_lists_of_names_are_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="named pipe"):
        Selection.parse(None, f"@{tmp_path / 'pipe'}")
    with pytest.raises(ConfigError, match="named pipe"):
        read_prompts([], tmp_path / "pipe")
    np.save(tmp_path / "a.npy", np.ones((1, 2)))
    with pytest.raises(ExchangeError, match="pipe cannot be read"):
        read_table(FeatureFile(tmp_path / "a.npy", paths=tmp_path / "pipe"))

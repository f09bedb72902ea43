"""Label tables that somebody has made to fill the memory, to hang, to mislead or to end in a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from heads.errors import LabelsError
from heads.labels.labels import Labels, read_labels
from heads.planning import read_configured

from ...peak import peak_of


def read(tmp_path: Path, text: str | bytes, **options: object) -> Labels:
    file = tmp_path / "labels.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labels(file, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cell", ["1_0", "1e308", "-1e31", "1e999", "٣", "１２", "0x10", "nan0", "1\0", "9" * 5000, "inf", "1" + "0" * 400]
)
def test_a_number_that_nobody_would_read_so_is_refused(tmp_path: Path, cell: str) -> None:
    with pytest.raises(LabelsError, match=r"labels\.csv"):
        read(tmp_path, f"path,x\na.jpg,1\nb.jpg,2\nc.jpg,3\nd.jpg,{cell}\n", tasks=["x"], kind="regression")


def test_labels_that_differ_by_next_to_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="another unit"):
        read(tmp_path, "path,x\na.jpg,5e-324\nb.jpg,0\nc.jpg,1e-323\n")
    with pytest.raises(LabelsError, match="another unit"):
        read(tmp_path, "path,x\na.jpg,1\nb.jpg,3\n", scales="-1e308:1e308")


@pytest.mark.parametrize("count", ["1e300", "9" * 400, "9" * 5000, "٣", "-3", "2.5", "0", "1" + "0" * 12])
def test_no_count_of_raters_can_be_absurd(tmp_path: Path, count: str) -> None:
    text = "path,x,x_sd,n\na.jpg,1,0.5,{0}\nb.jpg,2,0.5,{0}\n"
    with pytest.raises(LabelsError):
        read(tmp_path, text.format(3), sd="x_sd", n_raters=count)
    with pytest.raises(LabelsError):
        read(tmp_path, text.format(count), tasks=["x"], sd="x_sd", n_raters="n")


@pytest.mark.parametrize("odd", ["\x1b[2J", "\u202e", '\nerror: "all is lost"', "\u2028", "\0"])
def test_a_name_steers_no_terminal(tmp_path: Path, odd: str) -> None:
    quoted = odd.replace('"', '""')
    for text in (
        f'path,"x{quoted}y"\na.jpg,1\nb.jpg,2\n',
        f'path,x\n"a{quoted}b.jpg",1\nb.jpg,2\n',
    ):
        with pytest.raises(LabelsError, match="control character"):
            read(tmp_path, text)
    with pytest.raises(LabelsError, match="control character"):
        read(tmp_path, f'path,x\na.jpg,"p{quoted}q"\nb.jpg,r\n', tasks=["x"])


def test_a_quote_that_swallows_rows_is_said(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="quote"):
        read(tmp_path, 'path,x\n"a.jpg,1\nb.jpg,2\nc.jpg",3\nd.jpg,4\n')
    with pytest.raises(LabelsError, match="cannot be read as CSV"):
        read(tmp_path, 'path,x\na.jpg,1\nb.jpg,"2\nc.jpg,3\n')


def test_headers_are_told_apart(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfpath,x\na.jpg,1\nb.jpg,2\n").target.tasks == ("x",)
    with pytest.raises(LabelsError, match="two columns 'x'"):
        read(tmp_path, "path,x, x\na.jpg,1,2\nb.jpg,2,1\n")


def test_a_link_that_leads_to_itself_is_no_label_table(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").symlink_to("labels.csv")
    with pytest.raises(LabelsError, match=r"labels\.csv"):
        read_configured([str(tmp_path / "labels.csv")])


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".tsv"])
def test_a_pipe_or_a_device_is_no_label_table(tmp_path: Path, suffix: str) -> None:
    pipe, device = tmp_path / f"pipe{suffix}", tmp_path / f"zero{suffix}"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for file, what in ((pipe, "named pipe"), (device, "device")):
        with pytest.raises(LabelsError, match=what):
            read_labels(file)


def test_a_giant_that_takes_no_space_is_not_read(tmp_path: Path) -> None:
    for suffix in (".csv", ".parquet"):
        with (tmp_path / f"sparse{suffix}").open("wb") as out:
            out.truncate(1 << 40)
        with pytest.raises(LabelsError, match=r"at most 5"):
            read_labels(tmp_path / f"sparse{suffix}")


def test_the_shape_of_a_table_is_bounded(tmp_path: Path) -> None:
    wide = ",".join(f"c{i}" for i in range(1_000_000))
    with pytest.raises(LabelsError, match=r"1,000,001 columns"):
        read(tmp_path, f"path,{wide}\na.jpg,1\n")
    header = ",".join(f"c{i}" for i in range(9_000))
    with pytest.raises(LabelsError, match=r"10,001 rows and 9,001 columns"):  # short lines are filled up
        read(tmp_path, f"path,{header}\n" + "a\n" * 10_000)
    with pytest.raises(LabelsError, match="cannot be read as CSV"):
        read(tmp_path, f"path,x\na.jpg,{'1' * (1 << 25)}\n")
    many = "".join(f"{i}.jpg,class {i}\n" for i in range(20_000))
    with pytest.raises(LabelsError, match="20,000 classes"):
        read(tmp_path, f"path,x\n{many}", tasks=["x"], kind="multiclass")


@pytest.mark.parametrize(
    "made",
    [
        "pa.table({'path': list(map(str, range(3000))), 'x': pa.array(['y' * (1 << 22)]).dictionary_encode()"
        ".take(pa.array(np.zeros(3000, int)))})",  # 12 GB
        "pa.table({'path': pa.array(['a']).take(pa.array(np.zeros(3 * 10**7, int))), 'x': np.zeros(3 * 10**7)})",
        "pa.table({'path': ['a'], 'x': pa.array([np.zeros(6 * 10**7, 'i1')], pa.list_(pa.int8()))})",
        "pa.table({'path': list('abcde'), 'x': ['y' * (1 << 28)] * 2 + ['z' * (1 << 28)] * 3})",
    ],
    ids=["dictionary", "rows", "list", "text"],
)
def test_a_small_parquet_does_not_become_gigabytes(tmp_path: Path, made: str) -> None:
    file = tmp_path / "bomb.parquet"
    code = "import numpy as np, pyarrow as pa\nfrom pyarrow import parquet\n"
    code += f"parquet.write_table({made}, {str(file)!r}, compression='zstd')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert file.stat().st_size < 20 << 20
    said, peak = peak_of(
        f"""
from pathlib import Path
from heads import HeadsError
from heads.labels.labels import read_labels
try:
    read_labels(Path({str(file)!r}))
except HeadsError as error:
    print(error)
"""
    )
    assert "at most" in said
    assert peak < 1 << 31


def test_a_dictionary_of_a_parquet_is_read_as_its_words(tmp_path: Path) -> None:
    import pandas as pd

    file = tmp_path / "labels.parquet"
    frame = pd.DataFrame({"path": ["a.jpg", "b.jpg", "c.jpg"], "x": pd.Categorical(["joy", None, "fear"])})
    frame.to_parquet(file)
    labels = read_labels(file, tasks=["x"])
    assert labels.target.classes == ("fear", "joy")
    assert labels.paths == ["a.jpg", "c.jpg"]

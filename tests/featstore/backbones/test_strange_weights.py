"""Weights, and what is remembered of them, that somebody has made to mislead, to fill the memory or to hang."""

import json
import os
import re
import threading
import zipfile
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch

from featstore.backbones import Weights, WeightsPolicy, find_card, resolve_weights
from featstore.backbones.digests import DigestCache
from featstore.backbones.networks import read_state
from featstore.backbones.weights import shards_of
from featstore.config import Config, TensorSpec
from featstore.errors import WeightsError
from featstore.extraction.extract import extract
from featstore.extraction.networks import Networks, from_config
from featstore.extraction.recompute import recompute

from ...peak import peak_of

TINY = find_card("test_resnet")


@pytest.fixture
def config(tiny_config: Config, tmp_path: Path) -> Config:
    """One backbone with the weights of a file."""
    file = tmp_path / "weights" / "test_resnet.pth"
    file.parent.mkdir()
    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    spec = TensorSpec("t", "concat", ("test_resnet",))
    return replace(tiny_config, tensors=(spec,), weights=WeightsPolicy(file.parent))


def test_an_edited_cache_of_digests_lets_no_other_weights_pass(config: Config) -> None:
    extract(config)
    file, cache = config.weights.folder / "test_resnet.pth", DigestCache(config.weights.folder)
    right = cache.get(TINY, Weights("named file", file).file_digest() or "")
    assert right
    other = timm.create_model("test_resnet", pretrained=False).state_dict()
    torch.save({name: value + 1 for name, value in other.items()}, file)
    forged = Weights("named file", file).file_digest() or ""
    cache.put(TINY, forged, right)
    with pytest.raises(WeightsError, match=rf"{re.escape(str(cache.file))} says {right}.*wrong"):
        recompute(config.store, 3, photos=config.photos, weights=config.weights)
    assert cache.get(TINY, forged) is None
    with pytest.raises(Exception, match="weights"):  # now it is known for what it is
        recompute(config.store, 3, photos=config.photos, weights=config.weights)
    cache.put(TINY, forged, right)
    with pytest.raises(WeightsError, match="wrong"):
        extract(replace(config, store=config.store.with_name("other.zarr")))  # type: ignore[union-attr]


def test_weights_that_change_after_planning_are_not_computed_with(config: Config) -> None:
    networks = Networks(from_config(config, None, precision="fp32"), config.weights)
    networks.layouts()
    networks.forget(TINY)
    again = timm.create_model("test_resnet", pretrained=False).state_dict()
    torch.save({name: value * 2 for name, value in again.items()}, config.weights.folder / "test_resnet.pth")
    with pytest.raises(WeightsError, match="changed meanwhile"):
        networks.load(TINY)


def test_a_cache_of_digests_that_is_a_pipe_or_nested_is_as_if_lost(tmp_path: Path) -> None:
    cache = DigestCache(tmp_path)
    os.mkfifo(cache.file)
    assert cache.get(TINY, "a") is None
    cache.file.unlink()
    cache.file.write_text("[" * 100_000)
    assert cache.get(TINY, "a") is None


def test_a_file_that_unpacks_to_more_than_it_has_is_refused_before(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"conv1.weight": torch.zeros(1 << 26)}, plain)  # 256 MiB
    with zipfile.ZipFile(plain) as there, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        for member in there.infolist():
            out.writestr(member.filename, there.read(member))
    assert bomb.stat().st_size < 1 << 20
    said, peak = _in_another_process(f"read_state(Path({str(bomb)!r}), find_card('test_resnet'))")
    assert "unpacks to" in said
    assert peak < (1 << 30) + (100 << 20), peak  # with torch and timm themselves


def test_tensors_that_are_views_of_nothing_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "views.pth"
    torch.save({"conv1.weight": torch.zeros(1).expand(1 << 40)}, file)
    with pytest.raises(WeightsError, match="its tensors have"):
        read_state(file, TINY)
    torch.save({"conv1.weight": torch.eye(3).to_sparse()}, file)
    with pytest.raises(WeightsError, match=r"sparse|cannot be read"):
        read_state(file, TINY)


def test_a_file_that_is_much_larger_than_its_network_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "test_resnet.pth"
    with file.open("wb") as out:
        out.truncate(1 << 40)  # takes no space
    with pytest.raises(WeightsError, match=r"at most 1.* are read for 'test_resnet'"):
        resolve_weights(TINY, WeightsPolicy(tmp_path))


@pytest.mark.parametrize("name", ["../../x.safetensors", "..", "/etc/passwd", "model.safetensors.index.json", 3, None])
def test_an_index_names_weights_files_beside_it_only(tmp_path: Path, name: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(WeightsError, match="index of weights"):
        shards_of(index)


def test_an_index_of_pipes_missing_files_or_thousands_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "test_resnet"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    card = replace(TINY, files=(index.name,))
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    with pytest.raises(WeightsError, match="is not there, or is no file"):
        resolve_weights(card, WeightsPolicy(tmp_path))
    os.mkfifo(folder / "a.safetensors")
    with pytest.raises(WeightsError, match="is not there, or is no file"):
        resolve_weights(card, WeightsPolicy(tmp_path))
    index.write_text(json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(2000)}}))
    with pytest.raises(WeightsError, match="2000 files"):
        resolve_weights(card, WeightsPolicy(tmp_path))
    index.write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="levels deep"):
        resolve_weights(card, WeightsPolicy(tmp_path))


class _Server(BaseHTTPRequestHandler):
    """A server that answers otherwise than it should."""

    def do_GET(self) -> None:
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        self.send_response(200)
        if self.path.startswith("/short"):
            self.send_header("Content-Length", "1000")
        self.end_headers()
        with suppress(OSError):
            for _ in range(1000 if self.path.startswith("/endless") else 1):
                self.wfile.write(bytes(1 << 16 if self.path.startswith("/endless") else 10))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/other/net-0123456789ab.pth", "not with 0123456789ab"),
        ("/endless/net.pth", "sends more than"),
        ("/short/net.pth", "broke off|cannot be downloaded"),
        ("/away/net.pth", "not allowed|redirect"),
    ],
)
def test_a_server_that_answers_wrongly_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, said: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("featstore.backbones.weights.check_online", lambda *_: None)  # it asks on the port of HTTPS
    monkeypatch.setattr("featstore.backbones.weights._most_bytes", lambda _: 1 << 20)  # not a gigabyte in a test
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        card = replace(TINY, url=f"http://127.0.0.1:{server.server_port}{path}", hub=None)
        with pytest.raises(WeightsError, match=said):
            resolve_weights(card, WeightsPolicy(tmp_path / "weights", hub=True))
    finally:
        server.shutdown()
        server.server_close()
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


def _in_another_process(call: str) -> tuple[str, int]:
    """What an error says, and the most memory in bytes, of a call that may take 16 GiB of addresses."""
    return peak_of(
        f"""
from pathlib import Path
from featstore.backbones import find_card
from featstore.backbones.networks import read_state
from featstore.errors import FeatstoreError
try:
    {call}
except FeatstoreError as error:
    print(error)
"""
    )

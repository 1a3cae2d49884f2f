"""A small share of the campaign (``python -m tests.fuzz`` for all of it), its own alarms, and what it found once."""

import io
import os
import struct
import sys
import time
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import torch

from daflow_ext import read_flow, read_image, write_flow
from daflow_ext.cli._run_folder import RECORDS, SETTINGS, WARM
from daflow_ext.datasets import tartanair
from daflow_ext.evaluate import pseudo, submit
from daflow_ext.models import weights
from tests.fuzz import campaign
from tests.fuzz.readers import READERS, Reader
from tests.fuzz.records import run_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_or_refused(name, tmp_path):
    seed = int(os.environ.get("DAFLOW_FUZZ_SEED", "12345"))
    with campaign.one_thread():
        count = 12 if name == "config" else 60  # PyYAML is slow
        result = campaign.run(name, seed, 0, count, limit=60.0, keep=tmp_path)
    assert not result.findings, {what: f"input {result.examples[what]} in {tmp_path}" for what in result.findings}
    assert result.inputs == count
    assert result.accepted >= 1, "not even a valid file was read"


def _misbehave(how):
    def read(path):
        if path.read_bytes() != b"seed":
            how()

    return read


@pytest.mark.parametrize(
    ("how", "finding"),
    [
        (lambda: os.kill(os.getpid(), 11), "crash: signal 11"),
        (lambda: time.sleep(60), "hang"),
        (lambda: np.empty(2**29, np.uint8), "memory beyond the bound"),
        (lambda: [][0], "IndexError at test_fuzz.py"),
    ],
    ids=["crash", "hang", "memory", "error"],
)
@pytest.mark.skipif(os.environ.get("DAFLOW_TEST_SANITIZE") == "1", reason="the sanitizer takes signals and memory")
def test_the_alarms_work(how, finding, monkeypatch):
    monkeypatch.setitem(READERS, "bad", Reader("a", lambda: [b"seed"], _misbehave(how)))
    with campaign.one_thread():
        result = campaign.run("bad", 0, 0, 3, limit=1.0)
    assert result.inputs == 3
    assert any(what.startswith(finding) for what in result.findings), result.findings


def test_an_input_can_be_made_again():
    seeds = list(READERS["npz"].seeds())
    assert all(campaign.make_input("npz", seeds, 3, i) == campaign.make_input("npz", seeds, 3, i) for i in range(50))
    assert campaign.make_input("npz", seeds, 3, 7) != campaign.make_input("npz", seeds, 4, 7)


# ---- what was found --------------------------------------------------------------------------------------------------


def npz(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in members:
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(name, stream.getvalue())


FLOW = np.ones((2, 3, 4), np.float32)


def test_npz_of_a_kind_that_unpacks_without_a_limit(tmp_path):
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        npz(tmp_path / "a.npz", [("flow.npy", FLOW)], method)
        with pytest.raises(ValueError, match=r"a.npz is no whole .npz file: 'flow' is neither stored nor deflated"):
            read_flow(tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_npz_that_repeats_its_member(tmp_path):
    npz(tmp_path / "a.npz", [("flow.npy", FLOW)] * 3)
    with pytest.raises(ValueError, match="it holds 'flow' twice"):
        read_flow(tmp_path / "a.npz")


def test_npy_whose_header_claims_four_gigabytes(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{'descr': '<f4'}")
    before = campaign._memory("VmPeak")
    for read in (read_flow, lambda path: tartanair._codes(path, (6, 5))):
        with pytest.raises(ValueError, match=r"a.npy holds no NumPy array"):
            read(tmp_path / "a.npy")
    assert campaign._memory("VmPeak") - before < 2**28


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("chunk", [b"IDAT", b"IEND"])
def test_png_with_a_chunk_longer_than_the_file(tmp_path, suffix, chunk):
    """OpenCV would ask for its four gigabytes, and fill them."""
    write_flow(tmp_path / "a.png", torch.zeros(2, 6, 5))
    data = bytearray((tmp_path / "a.png").read_bytes())
    place = data.index(chunk) - 4
    data[place : place + 4] = struct.pack(">I", 2**32 - 500)
    path = tmp_path / f"b{suffix}"
    path.write_bytes(data)
    began = time.process_time()
    for read in (read_image, read_flow) if suffix == ".png" else (read_image,):
        with pytest.raises(ValueError, match=rf"b{suffix} is truncated: its {len(data)} bytes lack the PNG end mark"):
            read(path)
    assert time.process_time() - began < 1


def test_picture_that_claims_more_pixels_than_deflate_can_hold(tmp_path):
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(ValueError, match=r"a.png is truncated: its header says 30000x30000, but it has \d+ bytes"):
        read_image(tmp_path / "a.png")


def test_hdf5_that_reads_other_files(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(96))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["flow"] = FLOW
    with h5py.File(tmp_path / "a.flo5", "w") as file:
        file["flow"] = h5py.ExternalLink("other.h5", "flow")
    with h5py.File(tmp_path / "b.flo5", "w") as file:
        file.create_dataset("flow", (3, 4, 2), "f4", external=[(str(tmp_path / "secret"), 0, 96)])
    with h5py.File(tmp_path / "c.flo5", "w") as file:
        layout = h5py.VirtualLayout((2, 3, 4), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "flow", (2, 3, 4))
        file.create_virtual_dataset("flow", layout)
    for name, message in (("a", "'flow' is a link"), ("b", "lie in another file"), ("c", "lie in another file")):
        with pytest.raises(ValueError, match=rf"{name}.flo5: .*{message}"):
            read_flow(tmp_path / f"{name}.flo5")


def test_hdf5_with_a_name_that_is_no_text(tmp_path):
    with h5py.File(tmp_path / "a.flo5", "w") as file:
        file[b"\xff\xfe"] = FLOW
    with pytest.raises(ValueError, match=r"a.flo5 has no data set 'flow', it has "):
        read_flow(tmp_path / "a.flo5")


def test_npy_whose_header_is_no_python(tmp_path):
    text = b"{'descr': '<f4', 'shape': (2, 3, 4), 'fortran_order': F lse}"
    for header in (text, b"  x\n y\n", b"(" * 3000):
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        with pytest.raises(ValueError, match=r"a.npy holds no NumPy array"):
            read_flow(tmp_path / "a.npy")


def test_a_pickle_with_a_long_name_claims_no_memory(tmp_path):
    """BINUNICODE of a gigabyte, in a file of some bytes."""
    pytest.importorskip("accelerate")
    from daflow_ext.train import FlowConfig, checkpoint

    for name in ("a.pth", checkpoint.NAME):
        (tmp_path / name).write_bytes(b"\x80\x02X" + struct.pack("<I", 2**30) + b"abc")
    before = campaign._memory("VmPeak")
    with pytest.raises(ValueError, match=r"a.pth: not a readable weights file"):
        weights.read(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"checkpoint.pt is no checkpoint of a training run"):
        checkpoint.load(tmp_path, FlowConfig())
    assert campaign._memory("VmPeak") - before < 2**28


def test_records_that_name_files_outside_their_folder_are_dropped(tmp_path):
    """--overwrite removes what the records name."""
    (tmp_path / "precious").write_text("x")
    run = tmp_path / "run"
    run.mkdir()
    (run / SETTINGS).write_text("{}")
    for name in ("../precious", str(tmp_path / "precious")):
        (run / RECORDS).write_text(f'{{"files": {{"flow": "{name}"}}}}\n')
        assert run_folder(run, {}).records == []
        run_folder(run, {}, overwrite=True)
        assert (tmp_path / "precious").exists()
        (run / SETTINGS).write_text("{}")


def test_damaged_states_are_named(tmp_path):
    """AttributeError, KeyError and SafetensorError before."""
    (tmp_path / SETTINGS).write_text("{}")
    for name, read, damaged in (
        ("submission.json", lambda path: submit._claim(path, {}), b"[]"),
        ("pseudo.json", lambda path: pseudo._check_settings(path, {"a": 1}), b"[" * 5000),
        (WARM, lambda path: run_folder(tmp_path, {}).resume(1, warm_start=True), b"\x08"),
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)

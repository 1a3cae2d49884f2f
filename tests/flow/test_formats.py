"""Flow files: exact round trips, the layouts of the real files, and every way a file can be broken."""

import io
import os
import struct
import zipfile
import zlib

import cv2
import h5py
import numpy as np
import pytest
import torch

from daflow_ext.flow import read_flow, write_flow
from daflow_ext.flow.formats import SUFFIXES

EXACT = [suffix for name, suffix in SUFFIXES.items() if name != "png16"]


@pytest.fixture
def flow():
    """A flow with one unknown vector, at (row 2, column 3)."""
    flow = torch.randn(2, 5, 7) * 30
    flow[0, 2, 3] = torch.nan
    return flow


def expected(flow, step=None):
    """What reading gives: unknown in both components."""
    flow = flow.clone() if step is None else torch.round(flow / step) * step
    flow[:, 2, 3] = torch.nan
    return flow


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_round_trip(tmp_path, flow, suffix):
    path = tmp_path / f"a{suffix}"
    write_flow(path, flow)
    back, valid = read_flow(path, return_valid=True)
    torch.testing.assert_close(
        back, expected(flow, 1 / 64 if suffix == ".png" else None), rtol=0, atol=0, equal_nan=True
    )
    assert back.is_contiguous()
    assert valid.dtype == torch.bool
    assert valid.logical_not().nonzero().tolist() == [[2, 3]]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_valid_map_and_fill_value(tmp_path, flow, suffix):
    path = tmp_path / f"a{suffix.upper()}"
    valid = torch.rand(5, 7) > 0.5
    write_flow(path, flow.numpy().astype(np.float64), valid.numpy())
    known = valid.clone()
    known[2, 3] = False
    back, found = read_flow(path, return_valid=True, unknown=0)
    assert torch.equal(found, known)
    assert back[:, ~known].eq(0).all()
    assert (back - flow)[:, known].abs().max() <= (1 / 128 if suffix == ".png" else 0)
    assert read_flow(path)[:, ~known].isnan().all()


@pytest.mark.parametrize("suffix", SUFFIXES.values())
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 3, 2), (2, 2, 3), (2, 2, 2)])
def test_small_and_ambiguous_shapes(tmp_path, suffix, shape):
    flow = torch.arange(2 * shape[1] * shape[2]).reshape(shape).float()
    write_flow(tmp_path / f"a{suffix}", flow)
    assert torch.equal(read_flow(tmp_path / f"a{suffix}"), flow)


def test_flo_bytes(tmp_path):
    path = tmp_path / "a.flo"
    write_flow(path, torch.tensor([[[1.0, 2.0]], [[3.0, float("inf")]]]))
    assert path.read_bytes() == struct.pack("<fii4f", 202021.25, 2, 1, 1, 3, 1e10, 1e10)


def test_flo_unknown_threshold(tmp_path):
    path = tmp_path / "a.flo"
    values = (0, 1e9, 1.1e9, 0, 0, -1.1e9, float("nan"), 0)
    path.write_bytes(struct.pack("<4sii8f", b"PIEH", 4, 1, *values))
    assert read_flow(path, return_valid=True)[1].tolist() == [[True, False, False, False]]


def test_kitti_png_bytes(tmp_path):
    path = tmp_path / "a.png"
    write_flow(
        path, torch.tensor([[[0.0, 511.984375, 5.0]], [[-512.0, 0.25, 5.0]]]), torch.tensor([[True, True, False]])
    )
    blue_green_red = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert blue_green_red.dtype == np.uint16
    assert blue_green_red.tolist() == [[[1, 0, 32768], [1, 32784, 65535], [0, 0, 0]]]


def test_pfm_bytes(tmp_path):
    path = tmp_path / "a.pfm"
    write_flow(path, torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]))
    assert path.read_bytes() == b"PF\n1 2\n-1.0\n" + struct.pack("<6f", 2, 4, 0, 1, 3, 0)  # the last row first
    path.write_bytes(b"PF 1 2 1.0\n" + struct.pack(">6f", 2, 4, 0, 1, 3, 0))  # big endian
    assert read_flow(path).tolist() == [[[1], [2]], [[3], [4]]]


def test_other_layouts_are_read(tmp_path):
    flow = torch.randn(2, 4, 6)
    swapped = flow.permute(1, 2, 0).numpy()
    np.save(tmp_path / "a.npy", np.asfortranarray(swapped.astype(np.float64)))
    np.savez(tmp_path / "b.npz", flow=swapped)
    with h5py.File(tmp_path / "c.flo5", "w") as file:
        file["flow"] = flow.numpy()
    for path in tmp_path.iterdir():
        assert torch.equal(read_flow(path), flow), path


def test_flo5_is_laid_out_like_springs(tmp_path, flow):
    write_flow(tmp_path / "a.flo5", flow)
    with h5py.File(tmp_path / "a.flo5") as file:
        data = file["flow"]
        assert (data.shape, data.dtype, data.compression, data.compression_opts) == ((5, 7, 2), np.float32, "gzip", 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(tmp_path, dtype):
    flow = torch.randn(2, 3, 4).to(dtype).requires_grad_()
    write_flow(tmp_path / "a.flo", flow)
    assert torch.equal(read_flow(tmp_path / "a.flo"), flow.detach().float())


# Real files


@pytest.mark.parametrize(
    ("name", "size", "unknown"),
    [
        ("middlebury/RubberWhale/flow10.flo", (388, 584), True),
        ("middlebury/Dimetrodon/flow10.flo", (388, 584), True),
        ("sintel/alley_1/flow/frame_0001.flo", (436, 1024), False),
        ("flyingchairs/0000000-gt.flo", (384, 512), False),
        ("flyingchairs2_tiny/0000000-flow_01.flo", (50, 50), False),
        ("kitti/2015_000010/flow_occ.png", (375, 1242), True),
        ("kitti/2015_000010/flow_noc.png", (375, 1242), True),
        ("airsim/derived_flow_000000_000010.npz", (384, 512), True),
    ],
)
def test_real_files_survive_every_format(shared, tmp_path, name, size, unknown):
    source = shared / "data" / name
    flow, valid = read_flow(source, return_valid=True)
    assert flow.shape == (2, *size)
    assert bool((~valid).any()) == unknown
    assert flow[:, valid].abs().max() < 512
    assert flow[:, ~valid].isnan().all()
    for suffix in EXACT:
        write_flow(tmp_path / f"a{suffix}", flow, valid)
        back, back_valid = read_flow(tmp_path / f"a{suffix}", return_valid=True)
        assert torch.equal(back_valid, valid)
        assert torch.equal(back[:, valid], flow[:, valid])
    if source.suffix == ".png":
        write_flow(tmp_path / "a.png", flow, valid)
        original, written = (cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in (source, tmp_path / "a.png"))
        assert np.array_equal(original[original[..., 0] > 0], written[written[..., 0] > 0])
    elif source.suffix == ".flo" and not unknown:
        assert (tmp_path / "a.flo").read_bytes() == source.read_bytes()


def test_real_flow_points_from_frame_1_to_frame_2(shared):
    # the truth leaves the warped second frame close to the first, the swapped or negated truth does not
    from daflow_ext.flow import warp
    from daflow_ext.frames import read_image

    folder = shared / "data/sintel/alley_1"
    inside = (slice(None), slice(120, 280), slice(400, 640))
    flow = read_flow(folder / "flow/frame_0001.flo")[inside]
    image1, image2 = (read_image(folder / f"clean/frame_000{index}.png")[inside] for index in (1, 2))

    def error(candidate):
        return (warp(image2, candidate, backend="reference") - image1).abs().mean().item()

    assert error(flow) < 0.5 * min(error(-flow), error(flow.flip(0)), error(torch.zeros_like(flow)))


# Broken files


@pytest.mark.parametrize("suffix", SUFFIXES.values())
@pytest.mark.parametrize("kept", [0.0, 0.03, 0.5, 0.97])
def test_truncated_file_is_named(tmp_path, suffix, kept):
    path = tmp_path / f"cut{suffix}"
    write_flow(path, torch.randn(2, 40, 60))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=path.name):
        read_flow(path)


@pytest.mark.parametrize("suffix", [".flo", ".npy", ".pfm"])
def test_expected_and_actual_bytes_are_told(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_flow(path, torch.randn(2, 40, 60))
    data = path.read_bytes()
    for content, word in ((data[:-7], "truncated"), (data + b"abc", "too long")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name} is {word}: .* {len(data)} bytes, but it has {len(content)}"):
            read_flow(path)


def npy_header(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def huge_npz():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("flow.npy", npy_header((2, 2**20, 2**20)) + bytes(64))
    return stream.getvalue()


def huge_flo5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("flow", (2**20, 2**20, 2), "f4", chunks=(64, 64, 2))
    return path.read_bytes()


def huge_png():
    data = bytearray(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint16))[1].tobytes())
    data[16:24] = struct.pack(">II", 2**20, 2**20)
    return bytes(data)


def test_header_that_claims_terabytes(tmp_path):
    size = 2**20
    contents = {
        ".flo": struct.pack("<4sii", b"PIEH", size, size) + bytes(64),
        ".pfm": f"PF\n{size} {size}\n-1\n".encode() + bytes(64),
        ".npy": npy_header((2, size, size)) + bytes(64),
        ".npz": huge_npz(),
        ".flo5": huge_flo5(tmp_path / "a.h5"),
        ".png": huge_png(),
    }
    for suffix, content in contents.items():
        path = tmp_path / f"huge{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"huge{suffix}.*(1048576|bytes)"):
            read_flow(path)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (-(2**31), -(2**31))])
def test_flo_of_impossible_size(tmp_path, size):
    (tmp_path / "a.flo").write_bytes(struct.pack("<4sii", b"PIEH", *size) + bytes(64))
    with pytest.raises(ValueError, match=r"a.flo has an impossible size in its header"):
        read_flow(tmp_path / "a.flo")


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (np.zeros((4, 6, 3), np.uint8), r"3 channel\(s\) of 8 bits"),
        (np.zeros((4, 6), np.uint16), r"1 channel\(s\) of 16 bits"),
        (np.zeros((4, 6, 4), np.uint16), r"4 channel\(s\) of 16 bits"),
    ],
)
def test_png_that_is_no_kitti_flow(tmp_path, image, what):
    cv2.imwrite(str(tmp_path / "a.png"), image)
    with pytest.raises(ValueError, match=f"a.png is no KITTI flow: it has {what}, 3 of 16 bits were expected"):
        read_flow(tmp_path / "a.png")


def test_other_content_under_the_suffix(tmp_path, shared):
    for suffix in SUFFIXES.values():
        path = tmp_path / f"text{suffix}"
        path.write_text("this is no flow file at all, but long enough to hold a header of any kind " * 3)
        with pytest.raises(ValueError, match=path.name):
            read_flow(path)
    with pytest.raises(ValueError, match=r"occ_weights_01.pfm is no flow: it has 1 channel"):
        read_flow(shared / "data/flyingchairs2_tiny/0000000-occ_weights_01.pfm")


def test_arrays_that_are_no_flow(tmp_path):
    path = tmp_path / "a.npy"
    for array in (
        np.zeros((3, 4, 5), np.float32),
        np.zeros((2, 4, 5), np.int32),
        np.zeros((2, 4)),
        np.zeros((2, 0, 5)),
    ):
        np.save(path, array)
        with pytest.raises(ValueError, match=r"a.npy holds .*a flow is floating point"):
            read_flow(path)
    np.save(path, np.array([None, {}], object))
    with pytest.raises(ValueError, match=r"a.npy holds Python objects"):
        read_flow(path)
    np.savez(tmp_path / "a.npz", motion=np.zeros((2, 4, 5), np.float32))
    with pytest.raises(ValueError, match=r"a.npz has no array 'flow', it has motion.npy"):
        read_flow(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", flow=np.zeros((2, 4, 5), np.float32), valid=np.ones((5, 4), bool))
    with pytest.raises(ValueError, match=r"'valid' has shape \(5, 4\), 'flow' needs \(4, 5\)"):
        read_flow(tmp_path / "a.npz")
    with h5py.File(tmp_path / "a.flo5", "w") as file:
        file["motion"] = np.zeros((4, 5, 2), np.float32)
    with pytest.raises(ValueError, match=r"a.flo5 has no data set 'flow', it has motion"):
        read_flow(tmp_path / "a.flo5")
    with h5py.File(tmp_path / "a.flo5", "w") as file:
        file["flow"] = h5py.Empty("f4")
    with pytest.raises(ValueError, match=r"a.flo5 has no data set 'flow'"):
        read_flow(tmp_path / "a.flo5")


def test_headers_that_cannot_be_parsed(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4), np.float32))
    damaged = (tmp_path / "a.npy").read_bytes().replace(b"(2, 3, 4)", b"(2, 3, 4 ")
    (tmp_path / "a.npy").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a.npy holds no NumPy array"):
        read_flow(tmp_path / "a.npy")
    write_flow(tmp_path / "a.npz", torch.zeros(2, 3, 4))
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    for signature, offset in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
        damaged[damaged.index(signature) + offset] = 77  # no compression method
    (tmp_path / "a.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a.npz is no whole .npz file"):
        read_flow(tmp_path / "a.npz")


def test_kitti_png_with_a_transparent_colour(tmp_path):
    """Such a file is decoded with a fourth channel."""
    path, flow = tmp_path / "a.png", torch.tensor([3.0, -12.0]).reshape(2, 1, 1).expand(2, 4, 5)
    write_flow(path, flow)
    data, chunk = path.read_bytes(), b"tRNS" + struct.pack(">3H", 1, 2, 3)
    place = data.index(b"IDAT") - 4
    path.write_bytes(data[:place] + struct.pack(">I", 6) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[place:])
    assert torch.equal(read_flow(path), flow)


# Refused writes leave what was there


@pytest.mark.parametrize(
    ("flow", "valid", "message"),
    [
        (torch.zeros(1, 2, 3, 4), None, "flow must be floating point"),
        (torch.zeros(3, 4, 2), None, "flow must be floating point"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), None, "flow must be floating point"),
        (torch.zeros(2, 0, 4), None, "flow must be floating point"),
        (torch.zeros(2, 3, 4), torch.ones(4, 3), r"valid must be \(3, 4\), got \(4, 3\)"),
    ],
)
def test_bad_flow_is_not_written(tmp_path, flow, valid, message):
    path = tmp_path / "a.flo"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=f"a.flo: {message}"):
        write_flow(path, flow, valid)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_png_refuses_flow_it_cannot_hold(tmp_path):
    flow = torch.zeros(2, 3, 4)
    flow[1, 0, 0] = 600
    with pytest.raises(ValueError, match=r"a.png: flow from 0.0 to 600.0 pixels does not fit a KITTI PNG"):
        write_flow(tmp_path / "a.png", flow)
    assert list(tmp_path.iterdir()) == []
    write_flow(tmp_path / "a.png", flow, flow[1] < 512)  # unknown vectors need no room
    assert read_flow(tmp_path / "a.png", return_valid=True)[1].sum() == 11


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.flo"
    write_flow(path, torch.ones(2, 3, 4))

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_flow(path, torch.zeros(2, 3, 4))
    assert list(tmp_path.iterdir()) == [path]
    assert read_flow(path).eq(1).all()


def test_suffix_and_folder(tmp_path):
    for call in (lambda path: read_flow(path), lambda path: write_flow(path, torch.zeros(2, 3, 4))):
        (tmp_path / "a.txt").touch()
        with pytest.raises(ValueError, match=r"a.txt has no suffix of a flow file; expected one of .flo, .png"):
            call(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"absent.flo does not exist"):
        read_flow(tmp_path / "absent.flo")
    with pytest.raises(ValueError, match=r"the folder .* does not exist"):
        write_flow(tmp_path / "absent" / "a.flo", torch.zeros(2, 3, 4))

"""corr_lookup refuses bad input in one sentence, also where the operator is called without the Python function."""

import pytest
import torch

from daflow_ext import _load
from daflow_ext.ops import corr_lookup

MAP = torch.zeros(2, 4, 3, 5)
COORDS = torch.zeros(2, 2, 3, 5)
BAD_ARGUMENTS = {
    "rank of fmap1": ((MAP[0], [MAP], COORDS, 1), ValueError, r"fmap1 must be \[B, C, H, W\], got float32\[4, 3, 5\]"),
    "integer fmap1": ((MAP.int(), [MAP], COORDS, 1), TypeError, "fmap1 must be float32"),
    "tensor as pyramid": ((MAP, MAP, COORDS, 1), TypeError, "non-empty list"),
    "no level": ((MAP, [], COORDS, 1), TypeError, "non-empty list"),
    "dtype mix": ((MAP, [MAP.half()], COORDS, 1), TypeError, r"fmap2_pyramid\[0\] is float16.* but fmap1 is .*float32"),
    "channels": ((MAP, [MAP, MAP[:, :3]], COORDS, 1), ValueError, r"fmap2_pyramid\[1\] is float32\[2, 3, 3, 5\]"),
    "batch of a level": ((MAP, [MAP[:1]], COORDS, 1), ValueError, "batch and channels must agree"),
    "batch of coords": ((MAP, [MAP], COORDS[:1], 1), ValueError, "batch of coords is 1"),
    "coords last": ((MAP, [MAP], torch.zeros(2, 3, 5, 2), 1), ValueError, r"got float32\[2, 3, 5, 2\]"),
    "size of coords": ((MAP, [MAP], COORDS[..., :4], 1), ValueError, r"coords is float32\[2, 2, 3, 4\]"),
    "half coords": ((MAP, [MAP], COORDS.half(), 1), TypeError, "coords must be float32"),
    "double coords": ((MAP, [MAP], COORDS.double(), 1), TypeError, "coords must be float32"),
    "negative radius": ((MAP, [MAP], COORDS, -1), ValueError, "got -1"),
    "three radii": ((MAP, [MAP], COORDS, (1, 2, 3)), ValueError, "radius"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        corr_lookup(*arguments)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"order must be 'xy'.*got 'zz'"):
        corr_lookup(MAP, [MAP], COORDS, 1, order="zz")
    with pytest.raises(TypeError, match=r"out_dtype.*int32"):
        corr_lookup(MAP, [MAP], COORDS, 1, out_dtype=torch.int32)
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        corr_lookup(MAP, [MAP], COORDS, 1, backend="gpu")


DIRECT = {
    "rank of fmap1": (MAP[0], [MAP], COORDS, [1, 1]),
    "no channels": (MAP[:, :0], [MAP[:, :0]], COORDS, [1, 1]),
    "no level": (MAP, [], COORDS, [1, 1]),
    "channels": (MAP, [MAP[:, :3]], COORDS, [1, 1]),
    "batch of a level": (MAP, [MAP[:1]], COORDS, [1, 1]),
    "dtype mix": (MAP, [MAP.half()], COORDS, [1, 1]),
    "integers": (MAP.int(), [MAP.int()], COORDS, [1, 1]),
    "size of coords": (MAP, [MAP], COORDS[..., :4], [1, 1]),
    "rank of coords": (MAP, [MAP], COORDS[0], [1, 1]),
    "half coords": (MAP, [MAP], COORDS.half(), [1, 1]),
    "negative radius": (MAP, [MAP], COORDS, [-1, 1]),
    "radius that overflows": (MAP, [MAP], COORDS, [2**40, 1]),
}


@pytest.mark.skipif(_load.CPU_MISSING is not None, reason=str(_load.CPU_MISSING))
@pytest.mark.parametrize("arguments", DIRECT.values(), ids=DIRECT.keys())
def test_direct_call_refuses_what_it_could_not_read(arguments):
    with pytest.raises(RuntimeError, match="corr_lookup"):
        torch.ops.daflow_ext.corr_lookup(*arguments)
    need = {"need_fmap1": True, "need_pyramid": True, "need_coords": True, "deterministic": False}
    with pytest.raises(RuntimeError, match="corr_lookup"):
        torch.ops.daflow_ext.corr_lookup_backward(torch.zeros(2, 9, 3, 5), *arguments, scale=None, order="xy", **need)
    with pytest.raises(RuntimeError, match="grad must be"):
        torch.ops.daflow_ext.corr_lookup_backward(
            torch.zeros(2, 8, 3, 5), MAP, [MAP], COORDS, [1, 1], scale=None, order="xy", **need
        )

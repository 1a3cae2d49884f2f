"""python tests/with_torchvision.py CODE: runs code that imports torchvision, beside any torch.

The wheel that the package index gives is built for CUDA. Beside a CPU torch its operators cannot be loaded; torchvision
goes on without them, but stops where it describes two of them that then have no schema. Its RAFT uses neither, so the
schemas are declared here. That is done in a process of its own: others that look for torchvision (torchmetrics,
transformers) would stop there, too, so it is not kept where they see it but in the folder $TORCHVISION.
"""

import os
import sys

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def main(code: str) -> None:
    sys.path[:0] = filter(None, [os.environ.get("TORCHVISION")])
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            library.define(schema)
        import torchvision  # noqa: F401
    exec(compile(code, "<with torchvision>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main(sys.argv[1])

"""Loading without surprises: every key accounted for, and the key mode checked against the weights."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..strict_loading import StrictLoadingMixin

_UNUSED_ATTN2_TEXT = [r"attn2\.add_", r"attn2\.to_add_out", r"attn2\.norm_added_"]


class WeightsMixin(StrictLoadingMixin):
    """Strict ``from_pretrained`` with the key mode checked, and initialisation from SD3.5."""

    config: Any  # of the model this is mixed into, as these:
    state_dict: Callable[..., dict[str, torch.Tensor]]
    load_state_dict: Callable[..., Any]
    modules: Callable[[], Iterator[Any]]

    # tensors of the official checkpoint that no code path uses
    _keys_to_ignore_on_load_unexpected = _UNUSED_ATTN2_TEXT

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *, check_lq_key_mode: bool = True, **kwargs: Any
    ) -> Any:
        """Load a folder (or hub id) in diffusers layout; strict.

        Args:
            check_lq_key_mode: raise if ``lq_key_mode`` contradicts the weights (see :meth:`check_lq_key_mode`).
        Raises:
            ValueError: keys are missing, unexpected or of another shape, or the key mode contradicts the weights.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        if check_lq_key_mode:
            model.check_lq_key_mode(str(pretrained_model_name_or_path))
        return (model, info) if wants_info else model

    def check_lq_key_mode(self, name: str = "the checkpoint") -> None:
        """Raise if ``lq_key_mode`` contradicts ``to_k_control``.

        Under ``hq_renorm`` these tensors get no gradient and keep their initial zeros; under ``own`` they are trained.
        """
        zero = all(not bool(tensor.any()) for key, tensor in self.state_dict().items() if "to_k_control" in key)
        mode = self.config.lq_key_mode
        if zero == (mode == "own"):
            found, other = ("all zero", "hq_renorm") if zero else ("trained", "own")
            raise ValueError(
                f"{name}: to_k_control is {found}, which belongs to lq_key_mode={other!r}, but the model was loaded "
                f"with {mode!r}; pass lq_key_mode={other!r} (check_lq_key_mode=False to insist)"
            )

    @classmethod
    def from_sd3(cls, base: Any, **config: Any) -> Any:
        """A model on the weights of SD3.5 (``diffusers.SD3Transformer2DModel``), with fresh LQ tensors.

        LQ projections and the convolution start at zero; the LQ output projection is a copy of the HQ one.

        Raises:
            ValueError: the base lacks a tensor that is not an LQ tensor, or has one that does not fit.
        """
        names = inspect.signature(cls.__init__).parameters
        fields = {key: value for key, value in base.config.items() if key in names}
        model = cls(**{**fields, **config})
        try:
            missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
        except RuntimeError as error:  # shapes that differ
            raise ValueError(
                f"not an SD3.5 transformer of this configuration: {str(error).splitlines()[1].strip()}"
            ) from error
        missing = [key for key in missing if "control" not in key]
        if missing or unexpected:
            raise ValueError(f"not an SD3.5 transformer: missing {missing[:3]}, unexpected {unexpected[:3]}")
        for module in model.modules():
            if hasattr(module, "init_control"):
                module.init_control()
        return model

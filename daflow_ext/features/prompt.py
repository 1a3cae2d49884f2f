"""Encoded text as a part of a model folder, so that no text encoder is needed at run time."""

import os

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from safetensors import SafetensorError, safe_open

from ..frames._files import existing_file
from .strict_loading import StrictLoadingMixin

_NAMES = ("prompt_embeds", "pooled_prompt_embeds")


class Prompt(StrictLoadingMixin, ModelMixin, ConfigMixin):
    """The two encodings of one text that SD3 reads; of the empty text ("null prompt") for features.

    Two buffers and no parameters. :meth:`of` makes one from tensors, :meth:`load` from a file;
    ``from_pretrained`` / ``save_pretrained`` read and write the folder ``prompt/`` of a model.

    Shapes:
        prompt_embeds [tokens, embed_dim], pooled_prompt_embeds [pooled_dim].
    """

    @register_to_config
    def __init__(self, tokens: int = 154, embed_dim: int = 4096, pooled_dim: int = 2048):
        super().__init__()
        self.register_buffer("prompt_embeds", torch.zeros(tokens, embed_dim))
        self.register_buffer("pooled_prompt_embeds", torch.zeros(pooled_dim))

    @classmethod
    def of(cls, prompt_embeds: torch.Tensor, pooled_prompt_embeds: torch.Tensor) -> "Prompt":
        """The prompt of these encodings.

        Raises:
            ValueError: other shapes.
        """
        if prompt_embeds.dim() != 2 or pooled_prompt_embeds.dim() != 1:
            raise ValueError(
                "expected prompt_embeds [M, C] and pooled_prompt_embeds [P], got "
                f"{list(prompt_embeds.shape)} and {list(pooled_prompt_embeds.shape)}"
            )
        prompt = cls(*prompt_embeds.shape, *pooled_prompt_embeds.shape)
        prompt.prompt_embeds, prompt.pooled_prompt_embeds = prompt_embeds, pooled_prompt_embeds
        return prompt

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Prompt":
        """From a safetensors file with ``prompt_embeds`` and ``pooled_prompt_embeds``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no safetensors file, other tensors or shapes; names the file.
        """
        try:
            with safe_open(existing_file(path), framework="pt") as file:
                if set(file.keys()) != set(_NAMES):
                    raise ValueError(f"{path}: expected {' and '.join(_NAMES)}, got {sorted(file.keys())[:6]}")
                tensors = [file.get_tensor(name) for name in _NAMES]
        except SafetensorError as error:
            raise ValueError(f"{path}: no readable safetensors file ({error})") from error
        try:
            return cls.of(*tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def batch(self, size: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[size, M, C] and [size, P] in the dtype and on the device of ``like``."""
        embeds, pooled = self.prompt_embeds.to(like), self.pooled_prompt_embeds.to(like)
        return embeds.expand(size, -1, -1), pooled.expand(size, -1)

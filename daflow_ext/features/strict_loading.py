"""``from_pretrained`` that raises where diffusers only warns."""


class StrictLoadingMixin:
    """To stand before ``ModelMixin`` among the bases: loading then accounts for every tensor."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a folder (or hub id) in diffusers layout; options as in ``ModelMixin.from_pretrained``.

        Raises:
            ValueError: tensors are missing, unexpected or of another shape; names the folder and the first of them.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        problems = {kind: list(keys) for kind, keys in info.items() if keys}
        if problems:
            text = "; ".join(f"{kind.replace('_', ' ')} ({len(keys)}): {keys[:3]}" for kind, keys in problems.items())
            raise ValueError(f"{pretrained_model_name_or_path} does not fit {cls.__name__}: {text}")
        return (model, info) if wants_info else model

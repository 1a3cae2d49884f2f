"""The page of ``daflow app``, in gradio; all work is done by :class:`~daflow_ext.cli._studio.Studio`."""

import contextlib
import importlib.metadata
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from ._demo_scene import CLIP
from ._studio import Answer, Studio

_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False"}


def require_gradio() -> None:
    """Raise ImportError with the remedy unless gradio 6 is installed."""
    try:
        found = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError('daflow app needs gradio; install it with pip install "daflow_ext[app]"') from None
    if int(found.split(".")[0]) < 6:
        raise ImportError(f'daflow app needs gradio 6 or later, {found} is installed; pip install "daflow_ext[app]"')


@contextlib.contextmanager
def _environment(folder: pathlib.Path) -> Iterator[None]:
    """gradio is told by its environment variables where uploads go, and to send no statistics."""
    wanted = {**_ENVIRONMENT, "GRADIO_TEMP_DIR": str(folder / "uploads")}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def build(studio: Studio) -> Any:
    """The page as ``gradio.Blocks``."""
    import gradio

    limits = studio.limits
    with gradio.Blocks(title="daflow", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# daflow\nOptical flow by {studio.estimator.name}. Clips of up to {limits.frames} frames, "
            f"{limits.megapixels:g} megapixels, {limits.megabytes:g} MB; they stay on this machine and are removed "
            "when the app ends."
        )
        clip = gradio.Video(label="Clip", sources=["upload"], elem_id="clip", height=320)
        gradio.Examples([[str(CLIP)]], clip, label="No clip at hand?", elem_id="demo")
        with gradio.Tab("Flow"):
            _task(gradio, "Show the flow", clip, [], studio.flow)
        with gradio.Tab("Restore"):
            guided = gradio.Checkbox(True, label="guided by the flow: less flicker")
            steps = gradio.Slider(1, 20, 10, step=1, label="denoising steps")
            _task(gradio, "Restore", clip, [guided, steps], studio.restored)
        with gradio.Tab("Align"):
            reference = gradio.Number(0, precision=0, label="frame that all others are laid onto, from 0")
            _task(gradio, "Align", clip, [reference], studio.aligned)
        with gradio.Tab("Stabilise"):
            sigma = gradio.Slider(0, 30, 8, label="smoothing, frames")
            _task(gradio, "Stabilise", clip, [sigma], studio.stabilized)
    return page


def _task(gradio: Any, label: str, clip: Any, options: list[Any], work: Callable[..., Answer]) -> None:
    """A button that turns the clip into a film and a line of text; an error is shown, not raised."""
    button = gradio.Button(label, variant="primary")
    film = gradio.Video(show_label=False, interactive=False, autoplay=True, loop=True)
    text = gradio.Markdown()

    # gradio puts the progress where its default stands; before the others, of which there are more or fewer
    def run(progress: Any = gradio.Progress(), path: str | None = None, *values: Any) -> Answer:  # noqa: B008
        try:
            return work(path, *values, lambda share, what: progress(share, desc=what))
        except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
            raise gradio.Error(" ".join(str(error).split()), duration=None, print_exception=False) from error

    # one clip at a time, whoever asks
    button.click(
        run, [clip, *options], [film, text], concurrency_id="work", concurrency_limit=1, api_name=work.__name__
    )


@contextlib.contextmanager
def serving(studio: Studio, host: str, port: int | None) -> Iterator[str]:
    """Serves the page while the block runs; gives its address.

    Args:
        port: None: the first free one from 7860 on.
    Raises:
        OSError: the port is taken, or the host is none of this machine.
    """
    with _environment(studio.folder):
        import gradio

        page = build(studio)
        theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none is fetched
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=f"{studio.limits.megabytes:g}mb",
            allowed_paths=[str(studio.folder)],
            theme=theme,
            ssr_mode=False,
            footer_links=[],
        )
        try:
            yield address
        finally:
            studio.end()
            page.close(verbose=False)

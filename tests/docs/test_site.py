"""The documentation as a site: links out of docs/ lead somewhere, the strict build passes, the API page is whole."""

import html
import importlib
import pathlib
import re
import subprocess
import sys
import types

import pytest

mkdocs = pytest.importorskip("mkdocs", reason="the documentation needs `pip install 'daflow_ext[docs]'`")

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    from mkdocs.config import load_config

    return load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path_factory.mktemp("site")))


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "docs/memory.md", "memory.md"),
        ("index.md", "docs/daflow.md#video", "daflow.md#video"),
        ("validation.md", "../daflow_ext/weights/raft-tiny-lq/README.md", "model-cards/raft-tiny-lq.md"),
        ("how-to/data-and-licences.md", "../../THIRD_PARTY.md", "../third-party.md"),
        ("benchmarks.md", "../README.md#speed-on-a-cpu", "index.md#speed-on-a-cpu"),
        ("install.md", "../pyproject.toml", "repository/pyproject.toml"),
        ("install.md", "../not-here.md", "../not-here.md"),
        ("install.md", "https://example.org/docs/x.md", "https://example.org/docs/x.md"),
    ],
)
def test_links_out_of_the_folder(hooks, config, page, link, expected, monkeypatch):
    from mkdocs.structure.files import Files

    monkeypatch.setattr(config.plugins, "_current_plugin", "test", raising=False)  # set while a build runs

    files = Files([])
    shown = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=page))
    assert hooks.on_page_markdown(f"see [this]({link}).", shown, config, files) == f"see [this]({expected})."
    assert [file.src_uri for file in files] == [expected] * expected.startswith("repository/")


def test_every_page_has_a_place_in_the_navigation(hooks, config):
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    named = pages(hooks.on_config(config).nav)
    docs = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert len(named) == len(set(named))
    assert docs | set(hooks.PAGES.values()) | {"model-cards/index.md"} == set(named)


@pytest.mark.slow
def test_strict_build(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr

    pages = {path.relative_to(tmp_path): html.unescape(path.read_text()) for path in tmp_path.rglob("*.html")}
    for path, text in pages.items():  # nothing is fetched from elsewhere
        assert not re.search(r'<(script|img|iframe)[^>]+src="https?://|<link[^>]+stylesheet[^>]+https?://', text), path
    api = "".join(text for path, text in pages.items() if path.parts[0] == "api")
    for package in ("", ".correlation", ".correlation.adapters", ".datasets", ".flow", ".flow.metrics", ".models"):
        module = importlib.import_module(f"daflow_ext{package}")
        missing = [name for name in module.__all__ if f">{name}<" not in api and f".{name}" not in api]
        assert not missing, f"{module.__name__}: {missing}"
    examples = pages[pathlib.Path("examples/index.html")]
    assert "load_repository" in examples
    assert "--8<--" not in examples

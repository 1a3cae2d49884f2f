"""Every Python block of README.md and docs/ runs as it stands; a page's blocks share one namespace, like a session."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(page: pathlib.Path) -> list[tuple[int, str]]:
    """(line number, code) of each ```python block. A block that only shows a shape of code is marked ```text."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start()].count("\n") + 2, match[1]) for match in found]


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p)], ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch, example_files):
    monkeypatch.chdir(tmp_path)
    example_files(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in _blocks(page):
        # padded with empty lines, so that a traceback names the line of the page
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.fixture
def example_files():
    """What the examples read: two frames, and RAFT weights under the names the pages use."""

    def make(folder: pathlib.Path) -> None:
        import cv2
        import torch

        from daflow_ext.models import RAFT, weights

        image = (torch.rand(20, 24, 3) * 255).byte().numpy()
        image = cv2.resize(image, (192, 160), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "frame1.png"), image)
        cv2.imwrite(str(folder / "frame2.png"), image[:, list(range(2, 192)) + [191, 191]])
        torch.manual_seed(0)
        model = RAFT(small=True)
        weights.write(model.state_dict(), model.config, folder / "raft-small.safetensors")

    return make


def _shell_commands() -> list[str]:
    """Each command line of the ```bash blocks of README.md, comments removed."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = (re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_shell_commands_of_the_readme(tmp_path, example_files):
    """`daflow` and `python -m benchmarks` lines run; `make` lines name targets that exist; git and pip lines are not
    run here (the install modes have their own tests)."""
    import os
    import subprocess
    import sys

    example_files(tmp_path)
    (tmp_path / "clip").mkdir()
    for name in ("frame1.png", "frame2.png"):
        (tmp_path / "clip" / name).write_bytes((tmp_path / name).read_bytes())
    commands = _shell_commands()
    assert any(command.startswith("daflow infer") for command in commands)
    environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands:
        words = command.split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
        elif words[0] == "daflow":
            result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, f"{command}\n{result.stderr}"
        elif words[:2] == ["python", "-m"]:
            result = subprocess.run(
                [sys.executable, *words[1:], "--help"], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, f"{command}\n{result.stderr}"
        else:
            assert words[0] in ("git", "cd", "pip"), f"README shows a command that no test runs: {command}"

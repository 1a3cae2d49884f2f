"""What MkDocs has to know of this repository: pages that live outside docs/, and links that lead there.

README.md is the site's first page, the README of each shipped model its model card. A link to any other file of the
repository gets a copy of that file; one that leads nowhere is left as it is, and the strict build refuses it.
"""

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")

# repository path -> page of the site
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "THIRD_PARTY.md": "third-party.md",
    **{
        f"daflow_ext/weights/{path.parent.name}/README.md": f"model-cards/{path.parent.name}.md"
        for path in sorted((ROOT / "daflow_ext/weights").glob("*/README.md"))
    },
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation: how-to pages in the order of their index, the other folders by name, the rest under Topics."""
    guides = LINK.findall((ROOT / "docs/how-to/index.md").read_text())
    first = ["index.md", "install.md", "concepts.md"]
    last = ["benchmarks.md", "architecture.md"]
    topics = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in first + last)
    config.nav = [
        *first,
        {"How to": ["how-to/index.md", *(f"how-to/{name}" for name in guides if "/" not in name)]},
        {"Examples": ["examples/index.md"]},
        {"Topics": topics},
        {"Ops": _folder("ops")},
        {
            "Model cards": [
                "model-cards/index.md",
                *(page for page in PAGES.values() if page.startswith("model-cards/")),
            ]
        },
        "benchmarks.md",
        {"API": _folder("api")},
        {"Project": ["architecture.md", "contributing.md", "changelog.md", "third-party.md"]},
    ]
    return config


def _folder(name: str) -> list[str]:
    pages = sorted(path.name for path in (ROOT / "docs" / name).glob("*.md"))
    return [f"{name}/{page}" for page in sorted(pages, key=lambda page: page != "index.md")]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    cards = "".join(
        f"* [{pathlib.PurePath(page).stem}]({pathlib.PurePath(page).name})\n"
        for page in PAGES.values()
        if page.startswith("model-cards/")
    )
    files.append(File.generated(config, "model-cards/index.md", content=f"# Model cards\n\n{cards}"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    sources = {target: source for source, target in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def target(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if path in PAGES:
            return relative(PAGES[path])
        if path.startswith("docs/"):
            return relative(path.removeprefix("docs/"))
        if not (ROOT / path).is_file():
            return match[1]
        copy = f"repository/{path}" + (".txt" if path.endswith(".md") else "")
        if files.get_file_from_path(copy) is None:
            files.append(File.generated(config, copy, abs_src_path=str(ROOT / path)))
        return relative(copy)

    def relative(uri: str) -> str:
        return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(target, markdown)

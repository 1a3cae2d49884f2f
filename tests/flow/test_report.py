"""The HTML page."""

import base64
import html.parser
import json
import re

import cv2
import numpy as np
import pytest
import torch

from daflow_ext.flow import flow_to_image, write_report

VOID = {"meta", "img", "input", "br"}


class Page(html.parser.HTMLParser):
    """Checks nesting and collects what the test asks about."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def decode(uri):
    content = base64.b64decode(uri.split(",", 1)[1])
    return torch.from_numpy(cv2.imdecode(np.frombuffer(content, np.uint8), 1)[:, :, ::-1].transpose(2, 0, 1).copy())


@pytest.fixture
def page(tmp_path):
    frames = [torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8) for _ in range(3)]
    flows = [torch.randn(2, 16, 24) * 4 for _ in range(3)]
    write_report(
        tmp_path / "a.html",
        {"Frame": frames, "Flow <&>": flows},
        title="<b>A & B</b>",
        statistics=[{"EPE (px)": value} for value in (1.0, 2.0, 6.0)],
        settings={"iters": 12, "note": "</script>"},
        versions={"torch": "x"},
        max_flow=5.0,
    )
    return (tmp_path / "a.html").read_text(), flows


def test_one_file_without_a_network(page):
    text, _ = page
    tags = Page(text).tags
    sources = [attributes[key] for _, attributes in tags for key in ("src", "href") if key in attributes]
    assert len(sources) == 3  # two panels, the wheel
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in text
    assert "url(" not in text
    assert not re.search(r"\$[a-z]", text)  # every place of the template is filled


def test_text_is_escaped(page):
    text, _ = page
    assert "&lt;b&gt;A &amp; B&lt;/b&gt;" in text
    assert "Flow &lt;&amp;&gt;" in text
    assert text.count("</script>") == 2


def test_pictures_statistics_and_one_scale(page):
    text, flows = page
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    assert data["captions"] == ["Frame", "Flow <&>"]
    for uri, flow in zip(data["pictures"][1], flows, strict=True):
        assert torch.equal(decode(uri), flow_to_image(flow, 5.0))
    assert [row["EPE (px)"] for row in data["statistics"]] == [1, 2, 6]
    assert "<td>3.000</td>" in text
    assert "full colour moves 5.0 pixels" in text


def test_usable_by_keyboard(page):
    tags = Page(page[0]).tags
    slider = next(attributes for tag, attributes in tags if tag == "input")
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "0", "2")
    assert ("label", {"for": slider["id"]}) in tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")


def test_bad_input(tmp_path):
    frame = torch.zeros(3, 4, 5, dtype=torch.uint8)
    for panels, statistics in (({}, []), ({"a": [frame], "b": []}, []), ({"a": [frame]}, [{}, {}])):
        with pytest.raises(ValueError, match="every panel needs one picture per step"):
            write_report(tmp_path / "a.html", panels, title="", statistics=statistics)
    with pytest.raises(ValueError, match="does not exist"):
        write_report(tmp_path / "absent" / "a.html", {"a": [frame]}, title="")
    assert list(tmp_path.iterdir()) == []

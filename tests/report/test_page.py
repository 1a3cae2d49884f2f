"""What is in the HTML page, without a browser."""

import base64
import html.parser
import json
import re
import zlib

import cv2
import numpy as np
import pytest
import torch

from daflow_ext.flow import Report
from daflow_ext.flow.report.encode import encode_flow, encode_map, stored_positions, stride_for

VOID = {"meta", "img", "input", "br", "link"}


class Page(html.parser.HTMLParser):
    """Checks nesting and collects what the tests ask about."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.json = [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()
        assert self.open == []
        found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', self.text, re.DOTALL)
        self.head, *self.steps = [json.loads(text) for text in found]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def decoded_flow(code):
    """The format of encode_flow, undone from its description."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(code["data"])), np.uint8).astype(np.int64)
    low, high = planes.reshape(2, 2, code["height"], code["width"])
    zigzag = low + 256 * high
    steps = np.where(zigzag % 2, -(zigzag + 1) // 2, zigzag // 2)
    values = (np.cumsum(steps, axis=2) + 32768) % 65536 - 32768
    return np.where(values == -32768, np.nan, values * code["unit"])


# ---- storage --------------------------------------------------------------------------------------------------------


def test_flow_is_stored_within_half_a_unit():
    flow = torch.randn(2, 37, 53) * 20
    flow[:, 3, 4] = torch.nan
    flow[0, 5, 6] = 1e10
    flow[:, 7, 8] = torch.tensor([1023.9, -1023.9])
    code = encode_flow(flow, 1)
    read = decoded_flow(code)
    assert code["unit"] == 1 / 32
    unknown = np.zeros((37, 53), bool)
    unknown[3, 4] = unknown[5, 6] = True
    assert np.array_equal(np.isnan(read).all(0), unknown)
    assert np.array_equal(np.isnan(read).any(0), unknown)
    assert np.nanmax(np.abs(read - flow.numpy())[:, ~unknown]) <= 1 / 64


def test_long_vectors_get_a_larger_unit():
    flow = torch.tensor([5000.0, -3.3])[:, None, None].expand(2, 4, 6)
    code = encode_flow(flow, 1)
    assert code["unit"] == 1 / 4
    assert np.abs(decoded_flow(code) - flow.numpy()).max() <= 1 / 8


def test_every_nth_pixel():
    assert [stride_for(*size, 480) for size in ((270, 480), (270, 481), (1080, 1920), (2160, 3840))] == [1, 2, 4, 8]
    assert stored_positions(10, 1).tolist() == list(range(10))
    assert stored_positions(9, 2).tolist() == [1, 3, 5, 7, 8]
    assert stored_positions(10, 4).tolist() == [2, 6, 9]
    flow = torch.arange(90.0).reshape(1, 9, 10).expand(2, 9, 10)
    code = encode_flow(flow, 4)
    assert (code["width"], code["height"], code["stride"]) == (3, 3, 4)
    assert decoded_flow(code)[0].tolist() == [[22, 26, 29], [62, 66, 69], [82, 86, 89]]


def test_maps():
    confidence = torch.tensor([[0.0, 0.2, 1.0], [0.5, torch.nan, 2.0]])
    code = encode_map(confidence, 1)
    levels = np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(code["data"])), np.uint8).reshape(2, 3), axis=1)
    assert (levels % 256).tolist() == [[0, 51, 255], [128, 0, 255]]
    assert (code["mask"], encode_map(confidence > 0.3, 1)["mask"]) == (False, True)


# ---- page -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path):
    report = Report(
        "<b>A & B</b>",
        subtitle="</script>",
        swipe=("Frame", "Warped"),
        settings={"iters": 12, "options": ["a=1", 0.5], "note": "</script><script>alert(1)</script>"},
        versions={"torch": "x"},
        picture_side=40,
    )
    for index in range(3):
        frame = torch.full((3, 60, 80), 50 * index, dtype=torch.uint8)
        report.add_step(
            f"pair {index}",
            images={"Frame": frame, "Warped": frame},
            flows={"Flow <&>": torch.full((2, 60, 80), float(index))},
            maps={"Confidence": torch.rand(60, 80)},
            statistics={"EPE (px)": index + 0.25},
        )
    report.add_statistics("pair 3", {"EPE (px)": 9})
    report.add_table("Scores", ["model", "EPE"], [["a", 1.5]])
    report.write(tmp_path / "a.html")
    return Page(tmp_path / "a.html")


def test_one_file_without_a_network(page):
    sources = [attributes[key] for _, attributes in page.tags for key in ("src", "href") if key in attributes]
    assert sources == ["data:,"]
    # the only address names the elements of SVG and is never fetched; the policy of the page forbids every other
    assert set(re.findall(r"https?://[^\s\"']+", page.text)) == {"http://www.w3.org/2000/svg"}
    policy = next(tag["content"] for _, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "url(" not in page.text
    assert not re.search(r"\$(title|style|data|script)", page.text)


def test_text_cannot_leave_its_place(page):
    assert "<title>&lt;b&gt;A &amp; B&lt;/b&gt;</title>" in page.text
    assert page.text.count("</script>") == 5  # head, three steps, the code
    assert page.head["subtitle"] == "</script>"
    assert page.head["about"][0]["rows"][1] == ["options", "a=1, 0.5"]
    assert page.head["about"][0]["rows"][2] == ["note", "</script><script>alert(1)</script>"]


def test_pictures_flow_and_statistics(page):
    assert page.head["panels"] == [
        {"name": "Frame", "kind": "image"},
        {"name": "Warped", "kind": "image"},
        {"name": "Flow <&>", "kind": "flow"},
        {"name": "Confidence", "kind": "map"},
    ]
    assert page.head["maxFlow"] == pytest.approx(2 * 2**0.5)
    assert [row["values"]["EPE (px)"] for row in page.head["statistics"]] == [0.25, 1.25, 2.25, 9]
    assert [row["step"] for row in page.head["statistics"]] == [0, 1, 2, None]
    assert page.head["results"][0]["rows"] == [["a", "1.5"]]
    for index, step in enumerate(page.steps):
        assert step["size"] == [80, 60]
        assert (decoded_flow(step["flows"]["Flow <&>"]) == index).all()
        content = base64.b64decode(step["images"]["Frame"].removeprefix("data:image/jpeg;base64,"))
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (30, 40, 3)
        assert abs(float(picture.mean()) - 50 * index) < 1.5


def test_usable_by_keyboard(page):
    inputs = {attributes.get("id"): attributes for tag, attributes in page.tags if tag == "input"}
    labels = {attributes["for"] for tag, attributes in page.tags if tag == "label" and "for" in attributes}
    assert inputs["step"]["type"] == "range"
    assert {"step", "scale"} <= labels
    assert ("button", {"type": "button", "id": "play", "aria-pressed": "false"}) in page.tags


def test_the_same_clip_gives_the_same_page(tmp_path):
    for name in ("a.html", "b.html"):
        report = Report("t")
        report.add_step("0", flows={"Flow": torch.ones(2, 8, 9)})
        report.write(tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_bad_input(tmp_path):
    frame, flow = torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(2, 4, 5)
    report = Report("t")
    for arguments, message in (
        ({}, "images, flows and maps of one size were expected, got {}"),
        ({"images": {"a": frame.float()}}, r"a picture must be uint8 \[3, H, W\], got torch.float32"),
        ({"flows": {"f": frame}}, "f must be floating point"),
        ({"images": {"a": frame}, "flows": {"f": flow[:, 1:]}}, r"got {'a': \[3, 4, 5\], 'f': \[2, 3, 5\]}"),
        ({"maps": {"m": flow}}, r"got {'m': \[2, 4, 5\]}"),
    ):
        with pytest.raises(ValueError, match=message):
            report.add_step("0", **arguments)
    with pytest.raises(ValueError, match="neither steps nor tables"):
        report.write(tmp_path / "a.html")
    report.add_step("0", images={"a": frame})
    with pytest.raises(ValueError, match="does not exist"):
        report.write(tmp_path / "absent" / "a.html")
    assert list(tmp_path.iterdir()) == []

"""DAFlowPipeline.from_pretrained("owner/name"): downloaded from a hub that this test serves itself."""

import hashlib
import http.server
import json
import threading

import pytest
import torch

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")

import huggingface_hub

from daflow_ext import DAFlowPipeline

COMMIT = "0123456789" * 4


@pytest.fixture
def hub(pipeline_folder, tmp_path, monkeypatch):
    """Options that make owner/name the toy pipeline, as the hub's HTTP interface gives it; and what was asked for."""
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            path = self.path.split("?")[0]
            api = f"/api/models/owner/name/{'tree' if '/tree/' in path else 'revision'}/"
            if path.startswith("/api/"):
                files = [f for f in pipeline_folder.rglob("*") if f.is_file()] if path.startswith(api) else []
                tree = [
                    {"type": "file", "path": f.relative_to(pipeline_folder).as_posix(), "size": 1, "oid": f.name}
                    for f in (*files, pipeline_folder / "README.md")
                ]
                answer = tree if "/tree/" in path else {"id": "owner/name", "sha": COMMIT, "siblings": []}
                content = json.dumps(answer).encode() if files else None
            else:
                name = path.split(f"/resolve/{COMMIT}/")[-1]
                asked.append(name)
                content = (pipeline_folder / name).read_bytes()
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("ETag", hashlib.sha1(content or b"").hexdigest())
            self.send_header("X-Repo-Commit", COMMIT)
            if content is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return content or b""

        def do_GET(self):
            self.wfile.write(self.do_HEAD())

        def log_message(self, *arguments):
            pass

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"endpoint": f"http://127.0.0.1:{server.server_port}", "cache_dir": tmp_path / "cache"}, asked
        server.shutdown()


def test_a_pipeline_from_the_hub(hub, pipeline_folder):
    options, asked = hub
    found = DAFlowPipeline.from_pretrained("owner/name", **options)
    expected = DAFlowPipeline.from_pretrained(pipeline_folder)
    for part in ("transformer", "flow"):
        weights, truth = (getattr(pipe, part).state_dict() for pipe in (found, expected))
        assert all(torch.equal(weights[name], tensor) for name, tensor in truth.items())
    assert "flow/config.json" in asked
    assert "README.md" not in asked  # only the parts


def test_no_such_repository(hub):
    with pytest.raises(
        FileNotFoundError, match="owner/none is neither a folder nor a pipeline on the hub: "
    ) as refusal:
        DAFlowPipeline.from_pretrained("owner/none", **hub[0])
    assert "\n" not in str(refusal.value)

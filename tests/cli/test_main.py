"""The command as a whole."""

import json
import subprocess
import sys

import pytest

from daflow_ext import __version__, backends
from daflow_ext.cli import main, verbs


def test_verbs_are_the_files():
    assert {"convert", "demo", "infer", "info"} <= set(verbs())
    assert not any(name.startswith("_") for name in verbs())


@pytest.mark.parametrize("verb", ["align", "app", "convert", "demo", "infer", "info", "restore"])
def test_help_ends_with_one_example(daflow, verb):
    code, out, err = daflow(verb, "--help")
    assert (code, err) == (0, "")
    lines = out.rstrip("\n").splitlines()
    assert lines[-2] == "example:"
    assert lines[-1].startswith(f"  daflow {verb}")
    # the example is understood: parsing stops at none of its arguments
    from daflow_ext.cli import build_parser

    assert build_parser().parse_args(lines[-1].split()[1:]).verb == verb


def test_help_of_infer_states_units_direction_and_format(daflow):
    _, out, _ = daflow("infer", "--help")
    for word in ("pixels", "channel 0 = x to the right", "channel 1 = y down", "from the earlier frame", "png16"):
        assert word in out


def test_without_a_verb_it_lists_them(daflow):
    code, out, err = daflow()
    assert (code, out, err) == (2, daflow("--help")[1], "")


def test_version_and_list(daflow):
    assert daflow("--version") == (0, f"daflow {__version__}\n", "")
    code, out, _ = daflow("--help")
    assert code == 0
    assert all(f"\n    {verb}" in out for verb in verbs())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fly",), "invalid choice: 'fly'"),
        (("infer", "a.png", "--weights", "w", "--model", "m"), "not allowed with argument --weights"),
        (("infer", "a.png", "--weights", "w", "--format", "gif"), "invalid choice: 'gif'"),
        (("infer", "a.png", "--weights", "w", "--iters", "many"), "invalid int value: 'many'"),
    ],
)
def test_wrong_arguments_are_one_sentence(refused, arguments, message):
    assert message in refused(*arguments)


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        main(["infer", str(tmp_path / "absent"), "--weights", "w", "--debug"])


def test_a_process_ends_with_its_code(tmp_path):
    code = "import sys; from daflow_ext.cli import main; sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-c", code, "infer", str(tmp_path), "--weights", "w"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"daflow infer: the folder {tmp_path} holds no image, optical flow needs at least two frames "
        "(.png .jpg .jpeg .ppm .pgm .bmp .tif .tiff .webp)\n"
    )


def test_a_reader_that_stops_reading_is_no_error():
    program = "import sys; from daflow_ext.cli import main; sys.exit(main(['list', '--json']))"
    shell = f"'{sys.executable}' -c \"{program}\" | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert ended.stderr == ""
    assert ended.returncode in (0, 141)  # 0 if all was written before the reader left


def test_info_tells_every_op_and_backend(daflow):
    code, out, err = daflow("info", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["ops"] == backends.describe()
    assert found["versions"]["daflow_ext"] == __version__
    assert {"python", "torch", "cuda of torch", "numpy"} <= set(found["versions"])
    assert {"gpus", "build", "cpu_instruction_set"} <= set(found)

    code, text, _ = daflow("info")
    assert code == 0
    for op, answers in backends.describe().items():
        for backend, answer in answers.items():
            assert any(line.split()[:2] == [op, backend] and answer in line for line in text.splitlines())

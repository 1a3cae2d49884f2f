"""Makes the scenes importable by name, whatever the import mode of pytest."""

import importlib.util
import pathlib
import sys

_PATH = pathlib.Path(__file__).with_name("scenes.py")
_SPEC = importlib.util.spec_from_file_location("degrade_scenes", _PATH)
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["degrade_scenes"] = _MODULE
_SPEC.loader.exec_module(_MODULE)

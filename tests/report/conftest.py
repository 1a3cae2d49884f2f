import importlib.util
import pathlib

import pytest


def _driver():
    path = pathlib.Path(__file__).with_name("browser.py")
    spec = importlib.util.spec_from_file_location("report_browser", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium with one tab."""
    driver = _driver()
    executable = driver.find()
    if executable is None:
        pytest.skip(f"no Chromium found (apt-get install chromium, or $CHROMIUM); looked for {', '.join(driver.NAMES)}")
    browser = driver.Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()

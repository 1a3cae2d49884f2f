"""Draws docs/pictures/report.jpg: the page of `daflow demo` at its tenth step, in headless Chromium.

daflow demo && python docs/pictures/report.py daflow_demo/report.html
"""

import argparse
import pathlib
import subprocess
import tempfile

import cv2

OUTPUT = pathlib.Path(__file__).with_suffix(".jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--browser", default="chromium")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = pathlib.Path(folder, "page.png")
        options = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1500,940"]
        address = args.page.resolve().as_uri() + "#10"
        subprocess.run(
            [args.browser, *options, "--virtual-time-budget=3000", f"--screenshot={picture}", address],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        cv2.imwrite(str(OUTPUT), cv2.imread(str(picture)), [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == "__main__":
    main()

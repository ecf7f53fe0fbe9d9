"""The report in a real browser: no network, no message of the console, and it fits a phone and a printed page."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import pytest

from recipe.poise.compare.readers import Run
from recipe.poise.compare.report import write_report

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="Chromium is not installed")
# the page says what it is like to the one around it, which is as wide as asked (a headless window is not)
PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images].map(image => image.complete && image.naturalWidth > 0);
  const page = document.documentElement;
  parent.postMessage([page.scrollWidth, innerWidth, images.length, images.every(Boolean)], "*");
});</script>"""
FRAME = """<script>addEventListener("message", event => { document.title = JSON.stringify(event.data); });</script>
<iframe src="probe.html" style="width:%dpx;height:900px;border:0"></iframe>"""


def browse(*arguments) -> subprocess.CompletedProcess:
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=True)


def a_run(method: str, seed: int, slope: float) -> Run:
    steps: dict = {0: {"val-core/sums/acc/mean@4": 0.2}}
    for step in range(1, 11):
        steps[step] = {
            "timing_s/step": 9.0, "timing_s/gen": 5.0, "timing_s/update_actor": 4.0, "actor/grad_norm": 1 / step,
            "rollout/generated_tokens": 1000.0, "rollout/discarded_tokens": 100.0, "advantage/variance": 0.2,
            "advantage/zero_share": 0.1, "response_length/mean": 20.0, "poise/correlation": 0.1 * step,
            "poise/mae": 0.3, "poise/brier_skill": 0.2, "val-core/sums/acc/mean@4": 0.2 + slope * step + 0.01 * seed,
        }  # fmt: skip
        steps[step] |= {
            f"poise/calibration_{name}_{bin}": bin / 5 for name in ("value", "target") for bin in range(1, 6)
        }
    config = {"algorithm": {"adv_estimator": method}, "a_rather_long_section": {"a_rather_long_setting_name": method}}
    return Run(Path(f"{method}_s{seed}"), method, seed, steps, config)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    methods = ("poise", "dapo", "grpo", "reinforce_pp")
    runs = [a_run(name, seed, 0.01 * place) for place, name in enumerate(methods, 2) for seed in range(3)]
    path = write_report(runs, tmp_path_factory.mktemp("report"), "A title with <b>brackets</b> & more")
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", path.read_text()), "the page refers to something outside"
    return path


@pytest.mark.parametrize("width", [390, 1280])
def test_it_loads_and_fits(page, width, tmp_path):
    probe = tmp_path / "probe.html"
    probe.write_text(page.read_text().replace("</head>", PROBE + "</head>"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME % width)
    shot = tmp_path / "page.png"
    done = browse(f"--window-size={width},900", f"--screenshot={shot}", page.as_uri())
    assert "CONSOLE" not in done.stderr, done.stderr
    assert matplotlib.image.imread(shot)[..., :3].std() > 0.05, "the page is blank"
    done = browse("--dump-dom", "--virtual-time-budget=5000", frame.as_uri())
    assert "CONSOLE" not in done.stderr, done.stderr
    scroll, inner, images, loaded = json.loads(re.search(r"<title>(\[.*?\])</title>", done.stdout)[1])
    assert inner == width and scroll <= inner, f"{scroll} px of content in a window of {inner}"
    assert images == 5 and loaded


def test_the_title_is_text(page):
    assert "A title with &lt;b&gt;brackets&lt;/b&gt; &amp; more" in page.read_text()


def test_it_prints(page, tmp_path):
    pdf = tmp_path / "page.pdf"
    browse(f"--print-to-pdf={pdf}", page.as_uri())
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.stat().st_size > 20_000

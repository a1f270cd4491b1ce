"""The report is one file; a real browser shows it at desktop and phone width."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from distill import UserError, calibrate, evaluate, report, train, training_cost
from distill.runs.checkpoint import save_sampler
from losses import MeanVariance
from samplers import LinearGaussianField
from students import UNet

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run(noisy, tiny_hdn, tmp_path):
    student = UNet(out_channels=2, depth=2, filters=4)
    run = train(noisy, tiny_hdn, student, MeanVariance(), tmp_path / "a <run>", steps=2, refine_steps=1,
                batch_size=2, micro_batch=2, patch_size=16, validate_every=1, device="cpu").path  # fmt: skip
    evaluate(run, noisy, noisy.mean(0), draws=[1, 3], frames=1, device="cpu")
    training_cost(run, noisy, repeats=1, device="cpu")
    evaluate(run, noisy, out=run / "no truth", draws=[2], frames=1, device="cpu")
    calibrate(run, noisy, np.broadcast_to(noisy.mean(0), noisy.shape), device="cpu")
    return run


def test_one_page_with_everything_and_nothing_from_elsewhere(run, tmp_path):
    page = report([run, run], tmp_path / "pages" / "two.html").read_text()
    assert page.count("<svg") == 2 * 7 and page.count("data:image/png") > 20
    for text in ("a &lt;run&gt;", "SSIM", "3 draws", "ground truth", "paid for itself", "HDN(", "torch 2"):
        assert text in page, text
    for verdict in ("One pass of the student is ", "Next: "):  # each before pictures and tables
        at = page.index(verdict, page.index("<h3>"))
        assert at < page.index("<img") and at < page.index("<table", page.index("<h3>")), verdict
    assert page.count('<p class="verdict">') == page.count('<p class="next">') == 4
    assert page.count("<li>The draws differ from") == 2 and "dispersion, ideal 2" in page
    assert (
        "calibrated at 90%" in page
        and "Residual by brightness" in page
        and "residual, noisy minus denoised" in page
    )
    links = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)', page)
    assert not links and "@import" not in page and "{{" not in page and "{%" not in page
    assert len(page) < 5e6


def test_a_run_inside_another_is_shown_once(run, tmp_path):
    evaluate(run, np.zeros((8, 8)) + np.eye(8), np.eye(8), out=run / "more", draws=[], device="cpu")
    inner = run / "inner"
    shutil.copytree(run, inner, ignore=shutil.ignore_patterns("inner"))
    page = report([run, inner], tmp_path / "nested.html").read_text()
    assert page.count("<h3>Images from an array</h3>") == 2 * 3 and page.count("<h2>Table 1</h2>") == 1
    assert page.count("draws beside their means") == 2  # not where nothing was drawn


def test_only_finished_runs_have_one(tmp_path):
    with pytest.raises(UserError, match="not a finished run; pass a folder"):
        report(tmp_path)
    (tmp_path / "checkpoint.safetensors").touch()
    with pytest.raises(UserError, match="not a finished run; to resume it, run its `distill train` again"):
        report(tmp_path)


def test_a_sampler_without_a_student(noisy, tmp_path):
    save_sampler(tmp_path / "sampler.safetensors", LinearGaussianField(noise_std=10.0))
    assert "a sampler without a student" in report(tmp_path).read_text()
    evaluate(tmp_path, noisy, draws=[1, 2], frames=1, device="cpu")
    evaluate(tmp_path, noisy, noisy.mean(0), tmp_path / "truth", draws=[1, 2], frames=1, device="cpu")
    page = report(tmp_path).read_text()
    assert page.count("<h3>Images from an array</h3>") == 2 and page.count("2 draws") >= 4
    assert "Residual by brightness" in page and page.count("<svg") == 3 and "One pass" not in page


def test_nothing_of_the_user_is_replaced_or_deleted(run, tmp_path):
    student, mine = run / "student.safetensors", tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    link = tmp_path / "link.html"
    link.symlink_to(mine)
    for out, message in ((student, "ends in .html"), (mine, "is not a report"), (link, "is not a report"),
                         (tmp_path, "ends in .html")):  # fmt: skip
        before = student.read_bytes()
        with pytest.raises(UserError, match=message):
            report(run, out)
        assert student.read_bytes() == before and mine.read_text() == "<p>mine</p>"
    with pytest.raises(UserError, match="symbolic link"):
        report(run, link, overwrite=True)
    assert report(run, report(run)) == run / "report.html"  # an earlier report
    assert "<p>mine" not in report(run, mine, overwrite=True).read_text()


def test_a_folder_of_the_user_survives_an_evaluation(run, noisy, tmp_path):
    kept = tmp_path / "out" / "unfinished" / "thesis.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    evaluate(run, noisy, out=tmp_path / "out", draws=[], frames=1, device="cpu")
    assert kept.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium, or another")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_it(run, tmp_path, width, scheme):
    """No sideways scrolling of the page, the wanted colours, and pictures that have a size."""
    page, probe = report(run), tmp_path / "probe.html"
    script = (
        "<script>onload = () => document.title = JSON.stringify([document.documentElement.scrollWidth, "
        "getComputedStyle(document.body).backgroundColor, "
        "[...document.images].every(i => i.naturalWidth > 0)])</script>"
    )
    probe.write_text(page.read_text().replace("</head>", script + "</head>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom",
             f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000"]  # fmt: skip
    if scheme == "dark":
        flags.append("--blink-settings=preferredColorScheme=0")
    dom = subprocess.run(
        [CHROMIUM, *flags, probe.as_uri()], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    found = re.search(r"<title>\[(\d+),&quot;(.*?)&quot;,(\w+)\]|<title>\[(\d+),\"(.*?)\",(\w+)\]", dom)
    wide, background, pictures = [group for group in found.groups() if group is not None]
    assert int(wide) <= max(width, 500) and pictures == "true"
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 26)"}[scheme]

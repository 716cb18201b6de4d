"""The farm's page in a real Chromium: submit by drag and drop, watch, play, cancel, retry; by mouse, key and thumb."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import do_without
from tests.farm_process import ROOT, FarmProcess, served, workers

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]
PORTRAIT = ROOT / "examples/portraits/astronaut.jpg"
SECONDS = 120_000  # milliseconds that a film may take on a busy machine

HERE = Path(__file__).parent
NAMELESS = (HERE / "nameless.js").read_text(encoding="utf-8")

DROP = (HERE / "drop.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory, ffmpeg: Path) -> Path:
    import subprocess

    path = tmp_path_factory.mktemp("speech") / "welcome.wav"
    source = ROOT / "examples/speech/reading_en.flac"
    subprocess.run([ffmpeg, "-v", "error", "-i", source, "-t", "3", path], check=True)
    return path


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarmProcess]:
    home = tmp_path_factory.mktemp("farm")
    with served(home) as running, workers(home):
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    program = os.environ.get("FARM_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        do_without("there is no Chromium; on Debian: sudo apt install chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


OpenPage = Callable[..., Any]


@pytest.fixture
def open_page(chromium: Any, farm: FarmProcess) -> Iterator[OpenPage]:
    """Opens the page, signed in; nothing may be written to its console and nothing asked from other hosts."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def make(*, signed_in: bool = True, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.append(r.url) if not r.url.startswith((farm.url, "blob:")) else None)
        page.goto(f"{farm.url}/#key={farm.key}" if signed_in else farm.url)
        if signed_in:
            page.wait_for_selector("#pulse[data-live=yes]")
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


def drop(page: Any, *paths: Path) -> None:
    kinds = {".jpg": "image/jpeg", ".png": "image/png", ".wav": "audio/wav", ".csv": "text/csv", ".opus": "audio/ogg"}
    files = [
        {"name": p.name, "type": kinds[p.suffix], "data": base64.b64encode(p.read_bytes()).decode()} for p in paths
    ]
    page.evaluate(DROP, {"files": files})


def until(page: Any, condition: str) -> None:
    """Wait for a condition in JavaScript; the page's own policy forbids the driver to do it inside the page."""
    for _ in range(SECONDS // 100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never came true: {condition}")


def shot(page: Any, name: str) -> None:
    """Keeps a picture for people where FARM_TEST_SHOTS names a folder."""
    folder = os.environ.get("FARM_TEST_SHOTS")
    if folder:
        page.wait_for_timeout(400)
        page.screenshot(path=f"{folder}/{name}.png")


def test_a_film_is_dropped_watched_played_and_measured(open_page: OpenPage, speech: Path) -> None:
    page = open_page()
    drop(page, PORTRAIT, speech)
    dialog = page.locator("dialog#submit")
    dialog.get_by_label("Size").select_option("256x256")
    assert dialog.locator(".pairs li").count() == 1
    shot(page, "new-film")
    assert page.evaluate(NAMELESS) == []
    dialog.get_by_role("button", name="Make film").click()

    row = page.locator(".job", has=page.get_by_role("button", name="welcome, "))
    row.locator(".pill[data-state=succeeded]").wait_for(timeout=SECONDS)
    assert "device time" in row.inner_text()

    row.locator(".job-name").click()
    video = page.locator("dialog#detail video")
    video.wait_for()
    until(page, "document.querySelector('#detail video').readyState >= 1")
    assert page.evaluate("document.querySelector('#detail video').duration") == pytest.approx(3.0, abs=0.05)
    page.evaluate("document.querySelector('#detail video').play()")
    until(page, "document.querySelector('#detail video').currentTime > 0.3")
    page.locator("canvas.wave").click(position={"x": 5, "y": 20})  # goes back to the beginning
    until(page, "document.querySelector('#detail video').currentTime < 1.5")
    assert page.locator("dialog#detail .aside img").evaluate("node => node.naturalWidth") > 0
    assert "75 frames" in page.locator("dialog#detail .facts").inner_text()
    shot(page, "film")
    assert page.evaluate(NAMELESS) == []
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('dialog[open]') && location.hash === '#/films'")

    page.get_by_role("link", name="Timeline").click()
    page.locator("#gantt rect.k-render").first.wait_for()
    shot(page, "timeline")
    page.get_by_role("link", name="Workers").click()
    page.locator(".worker", has_text="preview@desk").wait_for()
    shot(page, "workers")
    assert page.evaluate(NAMELESS) == []


def test_a_running_film_is_cancelled_and_retried_and_a_failure_is_told_in_words(
    open_page: OpenPage, speech: Path, tmp_path: Path
) -> None:
    from PIL import Image

    page = open_page(color_scheme="dark")
    Image.new("RGB", (400, 400), "seagreen").save(tmp_path / "wall.png")
    shutil.copy(speech, tmp_path / "wall.wav")
    drop(page, tmp_path / "wall.png", tmp_path / "wall.wav")
    page.get_by_role("button", name="Make film").click()
    wall = page.locator(".job", has_text="wall")
    wall.locator(".pill[data-state=failed]").wait_for(timeout=SECONDS)
    assert "o face was found" in wall.inner_text()
    assert "/tmp" not in wall.inner_text()
    assert wall.get_by_role("button", name="Retry wall").is_visible()

    lecture = ROOT / "examples/speech/lecture_ja.opus"
    csv = tmp_path / "week.csv"
    csv.write_text(f"portrait,audio,name\n{PORTRAIT.name},{lecture.name},A long lecture\n", encoding="utf-8")
    drop(page, csv, PORTRAIT, lecture)
    page.get_by_role("button", name="Submit batch").click()
    long = page.locator(".job", has_text="A long lecture")
    long.locator(".pill[data-state=rendering]").wait_for(timeout=SECONDS)
    long.get_by_role("progressbar", name="Progress of A long lecture").wait_for(timeout=SECONDS)
    until(page, "document.querySelector('.job .meter i').style.width > '0%'")
    shot(page, "films-dark")
    long.get_by_role("button", name="Pause A long lecture").click()
    long.locator(".pill[data-state=paused]").wait_for()
    long.get_by_role("button", name="Resume A long lecture").click()
    long.get_by_role("button", name="Cancel A long lecture").click()
    long.locator(".pill[data-state=cancelled]").wait_for()
    long.get_by_role("button", name="Retry A long lecture").click()
    long.get_by_role("button", name="Cancel A long lecture").click()
    long.locator(".pill[data-state=cancelled]").wait_for()

    page.get_by_role("button", name="Failed", exact=True).click()
    long.wait_for(state="detached")
    assert page.locator(".job").count() == 1
    page.get_by_role("button", name="All", exact=True).click()
    long.wait_for()


def test_files_dropped_while_others_are_sent_are_not_lost(open_page: OpenPage, speech: Path) -> None:
    page = open_page()
    held: list[Any] = []
    page.route(
        "**/v1/batches", lambda route: held.append(route) if route.request.method == "POST" else route.continue_()
    )
    drop(page, PORTRAIT, speech)
    page.get_by_role("button", name="Make film").click()
    for _ in range(SECONDS // 100):
        if held:
            break
        page.wait_for_timeout(100)
    second = ROOT / "examples/speech/lecture_ja.opus"
    drop(page, PORTRAIT, second)
    page.locator(".pairs strong", has_text=second.stem).wait_for()
    with page.expect_response("**/v1/batches"):
        held[0].continue_()
    page.get_by_text("on the way").or_(page.get_by_text("submitted before")).first.wait_for()
    assert page.locator(".pairs strong").all_inner_texts() == [second.stem]
    assert page.get_by_role("button", name="Make film").is_enabled()


def test_the_page_is_worked_by_keys_alone(open_page: OpenPage) -> None:
    page = open_page()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("nothing has this name")
    page.get_by_text("No film matches").wait_for()
    page.locator("#search").fill("")
    page.locator(".job").first.wait_for()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.className") == "job-name"
    page.keyboard.press("Enter")
    page.locator("dialog#detail[open]").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.locator("dialog#submit[open]").wait_for()
    page.keyboard.press("Escape")
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_it_fits_a_phone_and_nothing_hangs_over_its_edge(open_page: OpenPage) -> None:
    page = open_page(viewport={"width": 375, "height": 740}, has_touch=True, is_mobile=True)
    for view in ("films", "workers", "timeline"):
        page.locator(f"nav a[data-view={view}]").tap()  # fails where something lies over it
        page.locator(f"section#{view}").wait_for()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, view
    new_film = page.locator("#new").bounding_box()
    assert new_film is not None and new_film["y"] > 600  # where a thumb is
    page.goto(page.url.split("#")[0] + "#/films")
    page.locator(".job-name").first.tap()
    page.locator("dialog#detail[open]").wait_for()
    assert page.evaluate("document.querySelector('#detail').scrollWidth") <= 375
    shot(page, "phone")


def test_who_has_no_key_is_asked_for_one_and_told_when_it_is_wrong(open_page: OpenPage, farm: FarmProcess) -> None:
    page = open_page(signed_in=False)
    page.locator("dialog#login[open]").wait_for()
    assert page.evaluate(NAMELESS) == []
    page.get_by_label("Key").fill(farm.make_key("bob", "read"))
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("#pulse[data-live=yes]")
    assert page.locator("#new").is_hidden()  # a reader makes no films
    assert page.locator(".job").count() == 0  # and sees nobody else's
    page.reload()
    page.wait_for_selector("#pulse[data-live=yes]")  # the cookie stays
    assert page.evaluate("document.cookie") == ""  # and scripts cannot read it

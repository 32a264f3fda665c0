"""The page in a real Chromium, over real trainings of the bundled base: from pictures to a preference run."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from pixelkiln.extension import draws, queue, words
from pixelkiln.extension.store import Home
from pixelkiln.trainer.runs import control

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = "/usr/bin/chromium"
PATIENCE = 120_000
"""Milliseconds for a step on a slow machine; a training or a drawing among them takes some fifteen seconds on a free
one."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """The interface as a process, which can be killed and started again on the same runs."""

    def __init__(self, runs: Path):
        self.runs, self.port = runs, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.killed = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "pixelkiln.extension", "--no-browser", "--port", str(self.port)]
        environment = {**os.environ, "PIXELKILN_PYTHON": os.environ.get("PIXELKILN_PYTHON", sys.executable)}
        self.process = subprocess.Popen([*command, "--runs", str(self.runs)], cwd=ROOT, env=environment)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, "the interface ended"
            time.sleep(0.2)
        raise AssertionError("the interface did not start")

    def kill(self) -> None:
        assert self.process
        self.killed = True
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of fourteen pictures with captions, and one file among them that is none."""
    folder = tmp_path_factory.mktemp("ui")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(14):
        picture = Image.new("RGB", (96 + 8 * number, 96), (20 * number % 255, 90, 140))
        ImageDraw.Draw(picture).ellipse((20, 20, 70, 70), fill="white")
        picture.save(pictures / f"p{number:02}.png")
        caption = "a red cat, ink" if number % 2 else "a blue dog, ink"
        (pictures / f"p{number:02}.txt").write_text(caption, encoding="utf-8")
    (pictures / "notes.md").write_text("not a picture", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    one = Server(place / "runs")
    one.start()
    yield one
    one.kill()
    for run in control.list_runs(place / "runs"):
        control.kill(run.path)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(server: Server, browser):
    one = browser.new_page(viewport={"width": 1280, "height": 900})
    one.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.goto(server.address)
    one.wait_for_selector("#open-folder")
    yield one
    one.close()
    if server.killed:  # a part of the page may have been under way
        wrong = [line for line in wrong if "Failed to fetch" not in line]
    assert not wrong, wrong


def step(page, label: str) -> None:
    page.get_by_role("tab", name=label).click()


def unfold(page, drawer: str) -> None:
    """Open it, and wait as long as a hand takes to its fields. In the first frames after they appeared, 35 ms,
    gradio writes the value that it has of each once more, over what a program has typed by then."""
    page.click(f"{drawer} > button")
    page.wait_for_selector(f"{drawer} textarea:visible, {drawer} input:visible")
    page.evaluate("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(go, 200))))")


def pictures(page) -> list[str]:
    """The addresses of the two pictures to choose between."""
    return page.locator(".duel img:visible").evaluate_all("found => found.map(one => one.src)")


def draft(server: Server) -> str:
    return (server.runs / ".ui" / "draft.toml").read_text(encoding="utf-8")


def until(what, seconds: float = PATIENCE / 1000) -> None:
    """Wait until it is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def write_recipe(server: Server, name: str, steps: int) -> None:
    """A quick training of the bundled base, as text in the place of the form."""
    (server.runs / ".ui" / "draft.toml").write_text(
        f'config_version = 1\npreset = "demo"\n[run]\nname = "{name}"\nsteps = {steps}\nbatch = 1\n'
        '[loss.pixel]\nweight = 0.0\n[sample]\nprompts = ["beer mug"]\nevery = 1000\n',
        encoding="utf-8",
    )


def start(page, server: Server, name: str) -> None:
    step(page, "2 Recipe")
    until(lambda: page.input_value("#field-run-name textarea, #field-run-name input") == name)
    page.wait_for_selector("#check-report .good.verdict")
    page.click("#start-training")
    page.wait_for_selector("#run-state .bar, #run-state .verdict, #start-training:has-text('anyway')")
    if page.locator("#start-training:has-text('anyway')").is_visible():  # few pairs, as the check says
        page.click("#start-training")
    page.wait_for_selector("#run-state .bar, #run-state .verdict")


def test_the_demo_from_pictures_to_training(server: Server, page) -> None:
    page.click("#demo-pictures")
    page.wait_for_selector("text=32 pictures, 32 with a caption")
    page.click("#next-pictures")
    page.wait_for_selector("#recipe-status .good")
    unfold(page, "#all-options")
    for key, value in (("run-name", "first"), ("run-steps", "12"), ("run-batch", "2")):
        page.fill(f"#field-{key} input, #field-{key} textarea", value)
        page.press(f"#field-{key} input, #field-{key} textarea", "Tab")
    until(lambda: "batch = 2" in draft(server) and 'name = "first"' in draft(server))
    page.fill("#field-sample-prompts textarea", "beer mug, food and drink\nt-rex, animals and nature")
    page.press("#field-sample-prompts textarea", "Tab")
    page.fill("#field-sample-every input, #field-sample-every textarea", "6")
    page.press("#field-sample-every input, #field-sample-every textarea", "Tab")
    until(lambda: "every = 6" in draft(server))
    page.fill("#search-options input, #search-options textarea", "sample.steps")
    page.fill("#option-sample-steps input", "4")
    page.press("#option-sample-steps input", "Tab")
    until(lambda: "\nsteps = 4" in draft(server))
    page.wait_for_selector("#check-report .good.verdict")
    assert "12 steps" in page.locator("#check-report").text_content()
    start(page, server, "first")
    assert 'preset = "demo"' in draft(server)
    until(lambda: (server.runs / "first" / "status.json").exists())
    # The page is closed here, in the middle, and opened again by what follows.


def test_a_problem_leads_to_its_field_wherever_that_is(server: Server, page) -> None:
    write_recipe(server, "wrong", 4)
    with (server.runs / ".ui" / "draft.toml").open("a", encoding="utf-8") as file:
        file.write("[adapter]\nrank = -1\n[save]\nkeep_last = -1\n[validation]\nevery = -1\n")
    step(page, "2 Recipe")
    for key in ("adapter.rank", "save.keep_last", "validation.every"):  # in the closed drawer; by its search, twice
        page.click(f"#recipe-status [data-option='{key}']")
        field = f":is(#field-{key.replace('.', '-')}, #option-{key.replace('.', '-')}).problem"
        page.wait_for_function(f"document.activeElement.closest('{field}')")
        top = page.evaluate("document.activeElement.getBoundingClientRect().top")
        assert 0 < top < 900, key


SYNONYMS = {"lr": "found-above", "mirror": "option-data-flip", "vram": "option-memory-"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_more_options_are_found_by_what_people_call_them(server: Server, page, theme: str) -> None:
    write_recipe(server, "options", 4)
    page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", theme == "dark")
    step(page, "2 Recipe")
    page.wait_for_selector("#recipe-status .good")
    assert page.locator("#goal input:checked").count() == page.locator("#models input:checked").count() == 1
    unfold(page, "#all-options")
    for asked, found in SYNONYMS.items():
        page.fill("#search-options input, #search-options textarea", asked)
        page.wait_for_selector(f"[id^={found}]")
    for width in (375, 768, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the screen is wider than the window"
        page.evaluate("scrollTo(0, 0)")
        begin = page.locator("#start-training").bounding_box()
        assert begin and begin["y"] + begin["height"] <= 901, "the next button lies below the window"
        fields = page.locator("[id^=option-]:visible").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.right, box.width])"
        )
        assert fields and all(left >= 0 and right <= width and across > 250 for left, right, across in fields)
        assert width < 1280 or len({left for left, _, _ in fields}) == 3, "they do not lie side by side"


def test_captions_and_a_mistake_beside_its_field(server: Server, page, place: Path) -> None:
    (server.runs / ".ui" / "draft.toml").unlink()
    page.reload()
    page.wait_for_selector("#open-folder")
    page.fill("#folder textarea, #folder input", str(place / "pictures"))
    page.click("#open-folder")
    page.wait_for_selector("text=14 pictures, 14 with a caption")
    until(lambda: page.locator("#grid .one img").count() == 14)
    until(lambda: "notes.md" in page.inner_text("#pictures-summary"))
    page.click("#grid .one >> nth=0")
    box = page.locator(".caption textarea")
    until(lambda: box.input_value() == "a blue dog, ink")
    box.press("End")
    box.press_sequentially(", green")
    until(lambda: (place / "pictures" / "p00.txt").read_text(encoding="utf-8").strip() == "a blue dog, ink, green")
    page.click("#next-pictures")
    page.wait_for_selector("#recipe-status .problems")
    assert "model.path" in page.inner_text("#recipe-status")  # the mistake, beside its field too
    assert "problem" in page.get_attribute("#field-model-path", "class")
    page.click("#recipe-status [data-option='model.path']")  # from its name to its field
    page.wait_for_function("document.activeElement.closest('#field-model-path')")
    page.fill("#field-model-path textarea, #field-model-path input", str(ROOT / "presets" / "base"))
    page.press("#field-model-path textarea, #field-model-path input", "Enter")
    page.press("#field-model-path textarea, #field-model-path input", "Tab")
    page.wait_for_selector("#recipe-status .good")
    page.check("#pixel input")
    until(lambda: "[loss.pixel]" in draft(server))


def test_many_pictures_at_once_and_one_by_mouse_and_keyboard(server: Server, page, place: Path) -> None:
    folder = place / "many"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (600, 500), (6 * number, 90, 140)).save(folder / f"m{number:02}.jpg")
        if number > 4:
            (folder / f"m{number:02}.txt").write_text("a red cat, ink", encoding="utf-8")
    page.fill("#folder textarea, #folder input", str(folder))
    page.click("#open-folder")
    page.wait_for_selector("text=40 pictures, 35 with a caption")
    assert page.locator("#grid .one").count() == 40 and not page.locator("#bulk").is_visible()
    page.get_by_label("5 without caption").check()
    until(lambda: page.locator("#grid .one").count() == 5)
    page.click("#grid .one >> nth=0 >> .tick")
    page.click("#grid .one >> nth=2", modifiers=["Shift"])
    assert page.inner_text(".chosen-count") == "3"
    page.click("#add-first")  # without a tag
    page.wait_for_selector("#pictures-error [role=alert]")
    assert page.locator(".toast-body").count() == 0
    page.wait_for_timeout(1500)
    assert page.locator("#pictures-error [role=alert]").is_visible() and page.inner_text(".chosen-count") == "3"
    page.fill("#bulk-tag input, #bulk-tag textarea", "sks")
    page.click("#add-first")
    until(lambda: page.locator("#grid .one").count() == 2)  # three have a caption now
    assert page.locator("#pictures-error [role=alert]").count() == 0
    assert page.inner_text("#pictures-error [role=status]") == "Changed: 3 captions."
    assert [one.read_text(encoding="utf-8").strip() for one in sorted(folder.glob("m0[0-2].txt"))] == ["sks"] * 3
    assert not page.locator("#bulk").is_visible()  # nobody changes what is not seen
    page.get_by_label("all 40").check()
    until(lambda: page.locator("#grid .one").count() == 40)
    page.click("[data-tag=sks]")
    until(lambda: page.locator("#grid .one").count() == 3)
    page.locator("#grid .pictures").press("ArrowRight")
    page.keyboard.press(" ")
    page.keyboard.press("Enter")
    page.wait_for_selector("#card figure[data-name='m01.jpg']")
    box = page.locator("#caption textarea")
    until(lambda: box.input_value() == "sks")
    box.press("End")
    box.press_sequentially(", a hat")
    page.wait_for_selector("#caption-status >> text=saved")
    page.wait_for_selector("#grid [data-name='m01.jpg'] >> text=sks, a hat")


def test_a_folder_typed_while_the_page_loads_stays(server: Server, page) -> None:
    page.add_init_script(SLOWLY + "; window.slowly = true")
    page.reload()
    page.wait_for_selector("#open-folder")
    page.fill("#folder textarea, #folder input", "/typed/early")
    assert page.locator("#grid .one").count() == 0, "the answer came before anything was typed"
    until(lambda: page.locator("#grid .one").count() > 0)
    page.wait_for_timeout(1500)
    assert page.input_value("#folder textarea, #folder input") == "/typed/early"


def test_a_picture_is_cropped_rotated_masked_and_left_out(server: Server, page, place: Path) -> None:
    folder = place / "many"
    page.click("#grid [data-name='m01.jpg']")
    page.wait_for_selector("#card figure[data-name='m01.jpg']")
    page.click("#crop-picture")  # without a frame
    page.wait_for_selector("#card-error >> text=there is no frame")
    assert page.locator(".toast-body").count() == 0
    page.locator("#card .whole").scroll_into_view_if_needed()
    seen = page.locator("#card .whole").bounding_box()
    page.mouse.move(seen["x"] + seen["width"] / 2, seen["y"] + 1)
    page.mouse.down()
    page.mouse.move(seen["x"] + seen["width"] + 20, seen["y"] + seen["height"] + 20, steps=4)
    page.mouse.up()
    page.click("#crop-picture")
    until(lambda: Image.open(folder / "m01.jpg").size[0] in range(295, 306))
    page.wait_for_selector("#card-error [role=alert]", state="detached")
    page.click("#rotate-picture")
    until(lambda: Image.open(folder / "m01.jpg").size[1] in range(295, 306))
    page.click("#original-picture")
    until(lambda: Image.open(folder / "m01.jpg").size == (600, 500))
    page.click("#paint-mask")
    canvas = page.locator("#mask-editor canvas").first
    canvas.wait_for()
    page.wait_for_timeout(3000)  # the editor draws its picture
    over = canvas.bounding_box()
    page.mouse.move(over["x"] + over["width"] / 2 - 60, over["y"] + over["height"] / 2)
    page.mouse.down()
    page.mouse.move(over["x"] + over["width"] / 2 + 60, over["y"] + over["height"] / 2, steps=8)
    page.mouse.up()
    page.click("#save-mask")
    until(lambda: (folder / "masks" / "m01.png").exists())
    mask = Image.open(folder / "masks" / "m01.png")
    assert mask.size == (600, 500) and mask.getextrema() == (0, 255) and mask.getpixel((0, 0)) == 255
    until(lambda: "masks" in draft(server))
    page.click("#leave-out")
    until(lambda: (folder / ".left-out" / "m01.jpg").exists())
    page.click("#take-back")
    until(lambda: (folder / "m01.jpg").exists())


def test_a_finding_of_the_check_is_settled_by_its_button(server: Server, page, place: Path) -> None:
    folder = place / "odd"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (140 + 9 * number, 130), (30 * number, 90, 140)).save(folder / f"p{number}.jpg")
        if number:
            (folder / f"p{number}.txt").write_text("a red cat, ink", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"none")
    (server.runs / ".ui" / "draft.toml").write_text(
        f'config_version = 1\npreset = "demo"\n[data]\npath = "{folder.as_posix()}"\n', encoding="utf-8"
    )
    page.reload()
    page.wait_for_selector("#grid .one")
    step(page, "2 Recipe")
    page.click("#check-report .worth button >> text=Leave out 1 picture")
    until(lambda: (folder / ".left-out" / "broken.png").exists())
    page.wait_for_selector("#check-report .worth >> text=1 picture: without caption")
    page.click("#check-report .worth button >> text=Show them")
    until(lambda: page.locator("#grid .one").count() == 1)
    assert page.get_by_label("1 without caption").is_checked()


def test_the_page_finds_the_run_again(server: Server, page) -> None:
    step(page, "3 Train")
    page.wait_for_selector("#run-state >> text=done")
    page.wait_for_selector("#gallery img")
    assert page.locator("#gallery tbody tr").count() == 2
    assert page.locator("#gallery thead th").count() >= 3
    page.wait_for_selector("#curve canvas, #curve svg")
    events, _ = control.events(server.runs / "first")
    losses = [one["loss"] for one in events if one["kind"] == "step"]
    assert len(losses) == 12 and len(set(losses)) == 12  # the curve moved


def test_previews_are_gone_through_by_keys(server: Server, page) -> None:
    step(page, "3 Train")
    page.wait_for_selector("#run-state >> text=done")
    page.wait_for_selector("#finished .result >> text=first.safetensors")
    shown = page.locator("#finished input:visible, #finished textarea:visible")
    assert all(shown.evaluate_all("all => all.map(one => one.value)")), "an empty field"
    assert page.locator("#finished").bounding_box()["height"] < 200
    for width in (375, 768, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        assert page.locator("#run label").first.bounding_box()["y"] < 300, width
        assert page.locator("#preview-at").bounding_box()["y"] < 900, width
    scrubber, after = page.locator("#preview-at input[type=range]"), page.locator("#before-after img").last
    page.wait_for_selector("#before-after img")
    scrubber.focus()
    before = after.get_attribute("src")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#preview-at >> text=step 6 of 12")
    until(lambda: after.get_attribute("src") != before)
    handle = page.locator("#before-after [data-testid=slider]")
    handle.focus()
    at = handle.bounding_box()["x"]
    page.keyboard.press("ArrowRight")
    assert handle.bounding_box()["x"] > at + 5
    page.click("#before-after button[title=Fullscreen]")
    page.wait_for_selector("#before-after.fullscreen")
    page.wait_for_timeout(600)
    assert page.locator("#before-after").bounding_box()["width"] > 1250
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#preview-at >> text=step 12 of 12", state="attached")
    page.keyboard.press("Escape")
    page.wait_for_selector("#before-after:not(.fullscreen)")
    page.click("#gallery td a >> nth=0")
    line, seen = page.locator("#large-preview p"), []
    for key in ("ArrowLeft", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
        seen.append(line.inner_text())
    assert ["step 0" in seen[0], "step 6" in seen[1], "t-rex" in seen[2]] == [True] * 3, seen
    page.keyboard.press("Escape")
    until(lambda: "t-rex" in page.evaluate("document.activeElement.title"))
    assert not line.is_visible()


def test_a_waiting_run_a_foreign_file_and_a_prompt_without_its_trigger(server: Server, page, place: Path) -> None:
    home = Home(server.runs)
    write_recipe(server, "tripped", 4)
    with (server.runs / ".ui" / "draft.toml").open("a", encoding="utf-8") as file:
        file.write('[data]\ntrigger = "sks"\n')
    step(page, "2 Recipe")
    page.wait_for_selector("#prompts-note >> text=lack the trigger word 'sks'")
    page.click("#check-report button >> text=Put the trigger word into the prompts")
    until(lambda: "[trigger], beer mug" in draft(server))
    page.wait_for_selector("#prompts-note >> text=drawn as: sks, beer mug")
    before = draft(server)
    (place / "other.json").write_text('{"colour": "red"}', encoding="utf-8")
    page.click("#recipe-files > button")
    page.locator("#import input[type=file]").set_input_files(str(place / "other.json"))
    page.wait_for_selector("#recipe-files-error >> text=no option in it is known")
    assert draft(server) == before and page.locator(".toast-body").count() == 0
    queue.pause(home, True)
    added = queue.add(home, "later", before)
    step(page, "3 Train")
    page.click("#run label >> text=later")
    page.wait_for_selector("#run-state >> text=later waits: number 1 in the queue; the queue is paused")
    page.wait_for_selector("#resume-queue")
    assert not page.locator("#gallery img:visible, #finished:visible").count(), "another run's results"
    queue.remove(home, added.id)
    queue.pause(home, False)


def test_any_two_previews_lie_side_by_side_by_mouse_and_keys(server: Server, page) -> None:
    step(page, "4 Compare")
    page.wait_for_selector("#compare-grid img")
    cells = page.locator("#compare-grid [data-cell]")
    assert cells.count() == 6  # two prompts, before and at two steps
    page.wait_for_selector("#compare-two img")
    shown = page.locator("#compare-two img")
    for press in (cells.nth(4).click, lambda: (cells.nth(3).focus(), page.keyboard.press("Enter"))):
        before = shown.evaluate_all("found => found.map(one => one.src)")
        press()
        until(lambda before=before: shown.evaluate_all("found => found.map(one => one.src)") != before)
    until(lambda: page.locator("#compare-grid [aria-pressed=true]").count() == 2)
    assert cells.nth(3).evaluate("one => one === document.activeElement")
    assert "t-rex" in page.inner_text("#compare-named")
    box = page.locator("#compare-two").bounding_box()
    picture = page.locator("#compare-two img").first.bounding_box()
    assert box and picture and picture["height"] <= box["height"] + 1, "the picture is cut"


def test_compare_vote_and_use(server: Server, page, place: Path) -> None:
    run, host = server.runs / "first", place / "ComfyUI"
    (host / "models" / "loras").mkdir(parents=True)
    step(page, "4 Compare")
    page.wait_for_selector("#compare-run input")
    until(lambda: page.input_value("#compare-run input") == "first")
    unfold(page, "#compare-more")
    page.wait_for_selector("#compare-which >> text=final")
    page.click("#draw")
    page.wait_for_selector("#compare-of >> text=drawn for comparing")
    until(lambda: page.locator("#compare-grid img").count() == 4)
    until(lambda: page.get_by_text("Drawing").count() == 0)
    page.click("#vote-blind")
    page.wait_for_selector("#vote-prompt .prompt")
    votes = run / "compare" / "votes.jsonl"
    for number, key in enumerate(("ArrowLeft", "ArrowRight", "ArrowDown"), 1):
        before = pictures(page)
        page.keyboard.press(key)
        until(lambda before=before: pictures(page) != before)
        assert len(votes.read_text(encoding="utf-8").splitlines()) == number
    # The quickest hand: a key in the moment when the next pictures appear, and each key twice.
    page.evaluate(
        """async (count) => {
            const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
            const showing = () => document.querySelector("[data-showing]").dataset.showing;
            for (let given = 0; given < count; given++) {
                const seen = showing();
                press("ArrowLeft");
                press("ArrowLeft");
                while (showing() === seen) await new Promise(requestAnimationFrame);
            }
        }""",
        20,
    )
    assert len(votes.read_text(encoding="utf-8").splitlines()) == 23
    step(page, "3 Train")
    step(page, "4 Compare")  # who comes back votes at once, the hand still on the tab
    page.wait_for_selector("[data-showing]")
    page.wait_for_timeout(1000)
    page.keyboard.press("ArrowDown")
    until(lambda: len(votes.read_text(encoding="utf-8").splitlines()) == 24)
    page.click("#end-vote")
    page.wait_for_selector("#vote-result .verdict")
    assert "wins" in page.inner_text("#vote-result") or "No winner" in page.inner_text("#vote-result")
    unfold(page, "#use-this")
    page.fill("#host-folder textarea, #host-folder input", str(host))
    page.click("#add-host")
    until(lambda: "ComfyUI" in page.input_value("#use-where input"))
    page.click("#use")
    until(lambda: (host / "models" / "loras" / "first.safetensors").exists())


def test_prefer_by_keys_then_train_on_it(server: Server, page) -> None:
    pairs = server.runs / "data" / "pairs" / "first"
    step(page, "5 Prefer")
    until(lambda: page.input_value("#prefer-run input") == "first")
    things = [f"a {colour} {what}" for colour in ("red", "blue") for what in ("cat", "dog", "house", "tree", "car")]
    unfold(page, "#prefer-more")
    page.fill("#prefer-prompts textarea", "\n".join(things))
    page.fill("#how-many-pairs input[type=number]", "10")
    page.press("#how-many-pairs input[type=number]", "Tab")
    page.wait_for_selector("#generate >> text=10 pairs")
    assert page.locator("#train-on-these").is_disabled()
    page.click("#generate")
    for number, key in enumerate(["ArrowLeft", "ArrowRight", "ArrowDown"] + ["ArrowLeft"] * 7):
        page.wait_for_selector(".duel img:visible")  # others are still being drawn
        if number == 0:
            page.keyboard.press("z")
            until(lambda: page.evaluate("document.documentElement.style.getPropertyValue('--zoom')") == "2")
            scales = page.locator(".duel img:visible").evaluate_all(
                "all => all.map(x => getComputedStyle(x).transform)"
            )
            assert len(set(scales)) == 1 and scales[0].startswith("matrix(2,")
        before = pictures(page)
        page.keyboard.press(key)
        until(lambda number=number: len(lines(pairs)) == number + 1)
        until(lambda before=before: pictures(page) != before)
    rows = lines(pairs)
    assert sum(bool(row.get("tie")) for row in rows) == 1
    page.keyboard.press("u")
    until(lambda: len(lines(pairs)) == 9)
    page.click("#train-on-these")
    page.wait_for_selector("#recipe-status")
    until(lambda: 'kind = "dpo"' in draft(server))
    text = draft(server).replace("steps = 300", "steps = 3")
    (server.runs / ".ui" / "draft.toml").write_text(text, encoding="utf-8")
    start(page, server, "first-dpo")
    until(lambda: (server.runs / "first-dpo" / "status.json").exists())  # its end is waited for in what follows


SLOWLY = """(() => {
  const real = window.fetch;
  window.fetch = async (...all) => {
    const late = window.slowly && String(all[0]?.url ?? all[0]).includes("queue/join");
    if (late) await new Promise((go) => setTimeout(go, 5000));
    return real(...all);
  };
})()"""
"""Makes every answer of the server late, once ``window.slowly`` is set."""
TYPED = {
    "4 Compare": ("#compare-more", ("#compare-prompts", "#compare-strengths")),
    "5 Prefer": ("#prefer-more", ("#prefer-prompts", "#pairs-folder", "#outputs-folder")),
}


@pytest.mark.parametrize("label", TYPED)
def test_nothing_typed_before_a_screens_first_answer_is_replaced(server: Server, page, label: str) -> None:
    page.add_init_script(SLOWLY)
    page.reload()
    page.wait_for_selector("#open-folder")
    page.wait_for_timeout(2000)
    page.evaluate("window.slowly = true")
    step(page, label)
    drawer, fields = TYPED[label]
    unfold(page, drawer)
    for field in fields:
        page.fill(f"{field} textarea, {field} input", f"typed into {field}")
    run = "#compare-run input" if "Compare" in label else "#prefer-run input"
    assert not page.input_value(run), "the answer came before anything was typed"
    until(lambda: page.input_value(run) != "")
    page.wait_for_timeout(1000)
    for field in fields:
        assert page.input_value(f"{field} textarea, {field} input") == f"typed into {field}"


STUDY = """
name = "tiny"
preset = "demo"
held_out = 0.3
pictures = 2
seeds = 1
options = { "run.steps" = 3, "run.batch" = 1, "sample.steps" = 2, "loss.pixel.weight" = 0.0 }
[[arms]]
name = "rank 16"
[[arms]]
name = "rank 4"
options = { "adapter.rank" = 4 }
[measures]
levels = 2
pixel_levels = 1
captions = 2
caption_levels = 1
neutral = ["a cup of coffee"]
"""


def test_a_study_from_its_plan_to_its_report_and_votes(server: Server, page, place: Path) -> None:
    (place / "tiny.toml").write_text(STUDY, encoding="utf-8")
    page.goto(f"{server.address}/#studies")
    page.reload()
    page.wait_for_selector("#study-file:visible")
    page.click("#study-plan")
    page.wait_for_selector("text=choose a ready one")  # nothing was given
    page.click("#ready-study input")
    page.locator("[role=option]", has_text="demo-dense").click()
    page.wait_for_selector("#study-targets:visible")
    page.fill("#study-file textarea, #study-file input", str(place / "tiny.toml"))
    page.wait_for_selector("#study-targets", state="hidden")
    until(lambda: page.input_value("#ready-study input") == "")  # of a ready one and a file, the later is meant
    page.wait_for_timeout(1000)  # a script types and clicks within one tick of the page
    page.click("#study-plan")
    page.wait_for_selector("#study-planned >> text=2 recipes x 1 seed = 2 cells")
    assert "ime:" in page.inner_text("#study-planned") and "adapter.rank = 4" in page.inner_text("#study-planned")
    until(lambda: not any(run.status.live for run in control.list_runs(server.runs)) and not draws.drawing(server.runs))
    page.click("#start-study")  # refused while another test's training goes on
    page.wait_for_selector("#study-state >> text=at work")
    page.click("#stop-study")
    page.wait_for_selector("#study-state >> text=stopped")
    folder = server.runs / "studies" / "tiny"
    assert not (folder / "summary.json").exists() or len(list(folder.glob("cells/*/cell.json"))) < 2
    page.click("#continue-study")
    page.wait_for_selector("#study-state >> text=done · 2 cells", timeout=300_000)
    page.wait_for_selector("iframe.report")  # without scripts in it, so it is asked for once more
    report = page.request.get(server.address + page.get_attribute("iframe.report", "src"))
    assert "<table" in report.text() and "rank 4" in report.text()
    page.click("#study-vote")
    page.wait_for_selector("#study-prompt .prompt")
    page.wait_for_selector("[data-mark] img")
    page.keyboard.press("ArrowLeft")
    until(lambda: (folder / "votes.jsonl").exists())
    assert json.loads((folder / "votes.jsonl").read_text(encoding="utf-8").splitlines()[0])["left"].endswith("@0")
    page.click("#end-study-vote")
    page.click("#study-report-again")
    until(lambda: "people" in (folder / "report.md").read_text(encoding="utf-8"))
    assert page.evaluate("location.hash") == "#studies"


SCREENS = ("1 Pictures", "2 Recipe", "3 Train", "4 Compare", "5 Prefer")
ADDRESSES = ("pictures", "recipe", "train", "compare", "studies", "maps", "prefer")
CONTROLS = "input:visible, textarea:visible, select:visible, button[role=tab]:visible, .cm-content:visible"


def focus_each(page, where: str) -> int:
    """Go into every control below ``where`` and out again; the number of them."""
    controls = page.locator(where).locator(CONTROLS)
    for number in range(controls.count()):
        controls.nth(number).focus()
        page.wait_for_timeout(50)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(1500)  # what a focus sets off is over by then
    return controls.count()


def test_moving_the_focus_replaces_nothing_that_was_typed(server: Server, page) -> None:
    write_recipe(server, "typed", 17)
    step(page, "2 Recipe")
    until(lambda: page.input_value("#field-run-name textarea, #field-run-name input") == "typed")
    unfold(page, "#all-options")
    page.fill("#field-adapter-rank input", "5")
    page.press("#field-adapter-rank input", "Tab")
    until(lambda: "rank = 5" in draft(server))
    before = draft(server)
    assert focus_each(page, "#tab-recipe, [role=tabpanel]:visible") > 20
    assert draft(server) == before


def test_each_screen_has_an_address(server: Server, page) -> None:
    for name in ADDRESSES:
        page.goto(f"{server.address}/#{name}")
        page.reload()
        button = f"inner-{name}" if name in ("studies", "maps") else f"tab-{name}"
        page.wait_for_selector(f"#{button}-button[aria-selected=true]")
        page.wait_for_timeout(1000)
        assert page.evaluate("location.hash") in (f"#{name}", "" if name == "pictures" else f"#{name}")


def test_an_address_is_found_also_where_its_tab_is_in_the_menu_of_a_narrow_window(server: Server, page) -> None:
    page.set_viewport_size({"width": 375, "height": 800})
    for name, seen in (("studies", "#inner-studies"), ("prefer", "#prefer-run"), ("recipe", "#field-run-name")):
        page.goto(f"{server.address}/?{name}#{name}")
        page.wait_for_selector(f"{seen}:visible")
        until(lambda name=name: page.evaluate("location.hash") == f"#{name}")


DEAF = """(() => {
  let clicks = 0;
  window.addEventListener("click", (event) => {
    if (event.target.closest("[role=tab]") && (clicks += 1) % 3) event.stopImmediatePropagation();
  }, true);
})()"""
"""Two of three clicks on a tab come before the page listens, as on a slow machine."""


def test_an_address_is_found_by_a_page_that_does_not_listen_yet(server: Server, page) -> None:
    page.add_init_script(DEAF)
    for name, tab in (("studies", "inner-studies"), ("prefer", "tab-prefer")):
        page.goto(f"{server.address}/#{name}")
        page.reload()
        page.wait_for_selector(f"#{tab}-button[aria-selected=true]")
        page.wait_for_timeout(1500)
        assert page.evaluate("location.hash") == f"#{name}" and page.locator(f"#{tab}-button.selected").count()
    page.goto(f"{server.address}/#steps")  # the link for keyboards: no screen of that name, none is left
    page.wait_for_timeout(500)
    assert page.is_visible("#prefer-run")


def texts(value: object) -> list[str]:
    """The texts of an entry of the table."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return [value] if isinstance(value, str) else [text for one in parts for text in texts(one)]


def test_a_german_browser_finds_every_screen_in_german_and_can_change_it(server: Server, browser) -> None:
    context = browser.new_context(locale="de-DE", viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(server.address)
    page.wait_for_selector("#open-folder:has-text('Öffnen')")
    assert page.url.startswith(f"{server.address}/de/")
    assert page.evaluate("[document.documentElement.lang, navigator.language]") == ["de", "de"]
    english = [text for name in vars(words) if name.isupper() for text in texts(vars(words)[name])]
    english = [text for text in english if re.search("[a-z]{2,} [a-z]{2,}", text)]
    written = [re.sub(r"\\{[^}]*\\}", ".+", re.escape(text)) for text in english]
    for screen in ("pictures", "recipe", "train", "compare", "studies", "maps", "prefer"):
        page.evaluate(f"location.hash = '{screen}'")
        page.wait_for_timeout(3000)
        page.locator("button.label-wrap:not(.open):visible").evaluate_all("all => all.forEach((one) => one.click())")
        page.wait_for_timeout(1000)
        lines = {line.strip() for line in page.inner_text("body").splitlines()}
        assert not [line for line in lines if any(re.fullmatch(one, line) for one in written)], screen
    page.click("#language")
    page.wait_for_selector("#steps [role=tab]:has-text('5 Prefer'):visible")
    assert page.url == f"{server.address}/#prefer" and page.evaluate("navigator.language") == "en"
    page.goto(server.address)  # what was chosen comes before what the browser asks for
    page.wait_for_selector("#open-folder:has-text('Open')")
    page.click("#language")
    page.wait_for_selector("#open-folder:has-text('Öffnen')")
    context.close()


OVERFLOWING = """() => [...document.querySelectorAll("button, [role=tab], h1, h2, h3, p, label, dd, dt")]
  .filter((one) => one.offsetParent && one.innerText.trim() && one.getBoundingClientRect().width > 1)
  .filter((one) => one.scrollWidth > one.clientWidth + 5 && one.clientWidth > 0)
  .map((one) => `${one.tagName} ${one.id} ${one.className}: ${one.innerText.slice(0, 60)}`)
  .concat(document.documentElement.scrollWidth > innerWidth ? ["the screen is wider than the window"] : [])"""
"""What is wider than its box; five pixels are the turned sign of a panel that is closed."""


@pytest.mark.parametrize("width", [480, 800, 1280])
def test_no_german_word_is_cut(server: Server, browser, width: int) -> None:
    write_recipe(server, "deutsch", 4)
    context = browser.new_context(locale="de-DE", viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(server.address)
    page.wait_for_selector("#open-folder:has-text('Öffnen')")
    for screen in ADDRESSES:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.evaluate(f"location.hash = '{screen}'")
        page.wait_for_timeout(2000)
        for opened in (False, True):
            if opened:
                page.set_viewport_size({"width": 1280, "height": 900})
                closed = page.locator("button.label-wrap:not(.open):visible")
                closed.evaluate_all("all => all.forEach((one) => one.click())")
                page.wait_for_timeout(1500)
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(500)
            assert page.evaluate(OVERFLOWING) == [], (screen, opened)
            if screen == "recipe" and opened:
                found = page.locator("[id^=option-]:visible").evaluate_all("all => all.map(one => one.clientWidth)")
                assert len(found) > 20 and min(found) > 150, "an option is a narrow strip"
    context.close()


@pytest.mark.parametrize("width", [1280, 800, 480])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_screen_has_an_accessibility_fault(server: Server, page, theme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", theme == "dark")
    for label in (*SCREENS[:4], "Studies", SCREENS[4]):
        step(page, label)
        page.wait_for_timeout(1500)
        if label == "2 Recipe":
            page.wait_for_selector("#check-report .verdict")
        found = Axe().run(page, {"exclude": [["#curve svg"]]}).response["violations"]  # the chart's own marks
        faults = [
            f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in found for node in one["nodes"]
        ]
        assert not faults, (label, faults)


def test_killed_interface_finds_its_training_and_its_queue(server: Server, page) -> None:
    for name, steps in (("long", 6000), ("next", 2)):
        write_recipe(server, name, steps)
        start(page, server, name)
    until(lambda: control.status(server.runs / "long").step > 0)
    assert control.status(server.runs / "first-dpo").state == "done"
    assert not (server.runs / "next" / "status.json").exists()  # it waits
    server.kill()
    at = control.status(server.runs / "long").step
    until(lambda: control.status(server.runs / "long").step > at)
    with page.expect_navigation():  # the open page comes back by itself
        server.start()
    page.wait_for_selector("#open-folder")
    step(page, "3 Train")
    page.wait_for_selector(".headline.live >> text=long")
    until(lambda: page.locator("#pause").is_visible())
    page.wait_for_selector("#run input:checked")
    page.click("#pause")
    until(lambda: control.status(server.runs / "long").state == "stopped")
    until(lambda: control.status(server.runs / "next").state == "done")  # the queue went on by itself


def lines(folder: Path) -> list[dict]:
    path = folder / "pairs.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

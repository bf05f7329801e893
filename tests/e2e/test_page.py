"""The page at /ui in a real browser, in front of a real predictor with the embedded model."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import toys
from serving import REPOSITORY, Server

sync_api = pytest.importorskip("playwright.sync_api")
expect, Browser, Locator, Page, Route = (getattr(sync_api, name) for name in ("expect", "Browser", "Locator", "Page", "Route"))

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
expect.set_options(timeout=30_000)  # a wait for what must come, on a machine that may be busy
PROMPT = "a large red circle on a blue background"
AWKWARD = 'it\'s a "red" circle\non `a` $blue background \\ 100%! é'
PREDICT = "**/v1/models/shapes:predict"
READINESS = "**/v1/models/shapes"


def arguments(volume: Path, *more: str) -> list[str]:
    return ["--model-id", "examples/shapes", "--root", str(volume), "--device", "cpu", *more]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("volume")
    model = root / "examples" / "shapes"
    shutil.copytree(REPOSITORY / "examples/shapes/model", snapshot := model / "snapshots" / toys.COMMIT)
    toys.write_manifest(snapshot, "examples/shapes")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(toys.COMMIT + "\n")
    return root


@pytest.fixture(scope="module")
def server(volume: Path) -> Iterator[Server]:
    with Server(arguments(volume, "--max-steps", "5000", "--max-cost", "1000"), name="shapes") as running:
        yield running.wait_until_ready()
        assert "circle" not in running.text  # no prompt in the log


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def complaints() -> list[str]:
    """Breaches of the content security policy, and exceptions of the page. None may be left when a test ends."""
    return []


@pytest.fixture
def visit(browser: Browser, server: Server, complaints: list[str]) -> Iterator[Callable[..., Page]]:
    """The page in a profile of its own, with options of the browser's context. `before` the page is asked for, for routes."""
    contexts = []

    def opened(before: Callable[[Page], None] = lambda page: None, address: str = server.url, **options: object) -> Page:
        contexts.append(context := browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options))
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("console", lambda told: complaints.append(told.text) if "Content Security Policy" in told.text else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        before(page)
        page.goto(f"{address}/ui")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(visit: Callable[..., Page]) -> Page:
    opened = visit()
    expect(opened.locator("#readiness")).to_have_text("ready")
    return opened


# ---------------------------------------------------------------- what a person does


def start(page: Page, prompt: str = PROMPT, **parameters: object) -> Locator:
    """The tile of the new request. Few steps, unless it says otherwise."""
    fill(page, prompt, **{"num_inference_steps": 5} | parameters)
    page.get_by_role("button", name="Start", exact=True).click()
    return page.locator(".tile").first


def fill(page: Page, prompt: str, **parameters: object) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for selector in ("#parameters", "#more"):
        page.locator(selector).evaluate("details => details.open = true")
    for name, value in parameters.items():
        control = page.locator(f"#parameter-{name}")
        if control.evaluate("control => control.matches('select')"):
            control.select_option(str(value))
        else:
            control.fill(str(value))


def start_long(page: Page) -> Locator:
    """More steps than any test waits for."""
    return start(page, num_inference_steps=1000)


def finished(tile: Locator) -> Locator:
    expect(tile).to_have_attribute("data-state", "done")
    return tile


def seed_told(tile: Locator) -> int:
    return int(re.search(r"seed\s(\d+)", tile.locator(".told").inner_text())[1])


def downloaded(page: Page, tile: Locator) -> tuple[str, np.ndarray]:
    with page.expect_download() as download:
        tile.get_by_role("link", name="Download").click()
    return download.value.suggested_filename, pixels(Path(download.value.path()).read_bytes())


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=int)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= 1)


def run_copied(page: Page, folder: Path) -> None:
    """What the clipboard holds, in a shell."""
    command = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(["sh", "-ec", command], cwd=folder, env=os.environ | {"no_proxy": "*"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


# ---------------------------------------------------------------- pictures


def test_a_picture_comes_out_and_it_is_the_servers(page, server):
    tile = finished(start(page))
    seed = seed_told(tile)
    name, picture = downloaded(page, tile)
    assert name == f"shapes-{seed}.png"
    answer = server.predict({"prompt": PROMPT, "parameters": {"num_inference_steps": 5, "seed": seed}})
    assert same(picture, pixels(answer.content))
    assert tile.locator("img").get_attribute("alt") == PROMPT
    assert tile.locator("img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 64]


def test_again_with_this_seed_gives_the_same_picture(page):
    first = finished(start(page))
    _, picture = downloaded(page, first)
    first.get_by_role("button", name="Again with this seed").click()
    expect(page.locator(".tile")).to_have_count(2)
    second = finished(page.locator(".tile").first)
    assert seed_told(second) == seed_told(page.locator(".tile").last)
    assert same(downloaded(page, second)[1], picture)
    assert page.locator("#parameter-seed").input_value() == str(seed_told(second))


def test_several_pictures_each_with_its_own_seed(page, server):
    start(page, num_images_per_prompt=2, seed=3)
    expect(page.locator(".tile[data-state=done]")).to_have_count(2)
    assert [seed_told(tile) for tile in page.locator(".tile").all()] == [3, 4]
    expect(page.locator(".tile pre").last).to_contain_text('"parameters": {"num_inference_steps": 5, "seed": 4}')
    _, second = downloaded(page, page.locator(".tile").last)
    answer = server.predict({"prompt": PROMPT, "parameters": {"num_inference_steps": 5, "seed": 4}})
    assert same(second, pixels(answer.content))


def test_preview_and_counter_come_before_the_end_and_cancelling_stops_the_work(page, server):
    with page.expect_response(PREDICT) as response:
        tile = start_long(page)
    expect(tile.locator("img")).to_have_attribute("alt", f"Preview of: {PROMPT}")
    expect(tile.locator(".told")).to_have_text(re.compile(r"^step \d+ of 1000$"))
    assert tile.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert 0 < tile.locator("progress").evaluate("bar => bar.position") < 1
    tile.get_by_role("button", name="Cancel").click()
    expect(tile.locator(".told")).to_have_text(re.compile(r"^cancelled at step \d+ of 1000$"))
    told = server.wait_until_over(response.value.headers["x-request-id"])
    assert told["state"] == "cancelled"
    assert 0 < told["step"] < 1000


# ---------------------------------------------------------------- curl


def test_the_curl_of_a_picture_gives_that_picture(page, tmp_path):
    tile = finished(start(page, guidance_scale=4, width=32, output_format="webp"))
    tile.locator("summary").click()
    expect(tile.locator("pre")).to_contain_text("curl http://")
    tile.get_by_role("button", name="Copy").click()
    expect(tile.locator(".copy")).to_have_text("Copied")
    run_copied(page, tmp_path)
    name, picture = downloaded(page, tile)
    assert name.endswith(".webp")
    assert same(pixels((tmp_path / "picture.webp").read_bytes()), picture)


def test_the_curl_of_the_form_is_for_the_form_as_it_stands(page, tmp_path):
    tile = finished(start(page, AWKWARD, seed=5))
    page.get_by_role("button", name="Copy", exact=True).first.click()
    run_copied(page, tmp_path)
    assert same(pixels((tmp_path / "picture.png").read_bytes()), downloaded(page, tile)[1])
    page.locator("#parameter-num_images_per_prompt").fill("2")
    page.get_by_role("button", name="Copied", exact=True).click()
    run_copied(page, tmp_path)
    [prediction] = json.loads((tmp_path / "pictures.json").read_bytes())["predictions"]
    assert [image["seed"] for image in prediction["images"]] == [5, 6]


# ---------------------------------------------------------------- the form


def test_what_is_left_at_its_default_is_left_out(page):
    fill(page, PROMPT)
    expect(page.locator("#command")).to_contain_text(f"""-d '{{"prompt": "{PROMPT}"}}'""")
    fill(page, PROMPT, guidance_scale="3.5", negative_prompt="green")
    sent = '"parameters": {"guidance_scale": 3.5, "negative_prompt": "green"}'
    expect(page.locator("#command")).to_contain_text(sent)
    page.get_by_role("button", name="Defaults").click()
    expect(page.locator("#command")).not_to_contain_text("parameters")


def test_a_field_that_the_page_has_never_heard_of_appears_by_itself(visit):
    new = {
        "a_switch": {"type": "boolean", "default": True, "description": "on or off"},
        "a_list": {"type": "array", "items": {"type": "number"}},
        "a_choice": {"type": "string", "enum": ["one", "two"]},
        "a_text": {"type": "string", "maxLength": 20, "default": "as it was"},
        "a_number": {"type": "number", "minimum": -1, "maximum": 1},
    }

    def answered(route: Route) -> None:
        schema = route.fetch().json()
        schema["properties"]["parameters"]["properties"] |= new
        route.fulfill(json=schema)

    page = visit(lambda page: page.route("**/schema", answered))
    page.locator("#more summary").click()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("A switch").uncheck()
    page.get_by_label("A list").fill("[1, 0.5]")
    page.get_by_label("A choice").select_option("two")
    page.get_by_label("A text").fill("")
    page.get_by_label("A number").fill("-0.25")
    with page.expect_request(PREDICT) as request:
        page.keyboard.press("Control+Enter")
    sent = {"a_switch": False, "a_list": [1, 0.5], "a_choice": "two", "a_text": "", "a_number": -0.25}
    assert request.value.post_data_json == {"prompt": PROMPT, "parameters": sent}
    expect(page.locator(".tile .told")).to_have_text(re.compile('^parameters has no field "a_'))
    page.get_by_label("A list").fill("[1,")
    page.locator("#more summary").click()
    page.keyboard.press("Control+Enter")  # refused by the page, which opens what it complains about
    expect(page.get_by_label("A list")).to_be_focused()
    expect(page.locator(".tile")).to_have_count(1)


def test_a_long_prompt_is_refused_and_not_cut(page):
    pasted = "circle " * 600
    with page.expect_request(PREDICT) as request:
        tile = start(page, pasted)
    assert request.value.post_data_json["prompt"] == pasted
    expect(tile.locator(".told")).to_have_text(
        "prompt must be a string of 1 to 4000 characters, not blank or of 4200 characters"
    )


def test_prompts_are_kept_nowhere(page):
    finished(start(page))
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert page.evaluate("indexedDB.databases()") == []
    page.reload()
    expect(page.locator("#readiness")).to_have_text("ready")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("")
    assert page.url.endswith("/ui")


# ---------------------------------------------------------------- what stands in the way


def test_a_server_that_is_not_ready_says_its_phase_and_the_page_goes_on_by_itself(visit):
    loading = True

    def answered(route: Route) -> None:
        if loading:
            error = "model shapes is not ready: reading 1.85 GB of weights"
            route.fulfill(status=503, headers={"retry-after": "5"}, json={"error": error})
        else:
            route.continue_()

    def before(page: Page) -> None:
        page.clock.install()
        for address in (READINESS, READINESS + "/schema", PREDICT):
            page.route(address, answered)

    page = visit(before)
    expect(page.locator("#readiness")).to_have_text("model shapes is not ready: reading 1.85 GB of weights")
    expect(page.locator("#parameters")).to_be_hidden()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.keyboard.press("Control+Enter")
    tile = page.locator(".tile")
    expect(tile.locator(".told")).to_have_text(re.compile("reading 1.85 GB of weights; this starts by itself"))
    expect(page.locator("#news")).to_have_text(re.compile("reading 1.85 GB of weights"))
    page.clock.run_for(2100)
    expect(tile).to_have_attribute("data-state", "asleep")
    loading = False
    page.clock.run_for(2100)
    finished(tile)
    expect(page.locator("#readiness")).to_have_text("ready")
    expect(page.locator("#parameters")).to_be_visible()


def test_a_full_server_is_asked_again_when_it_said(visit):
    page = visit(lambda page: page.clock.install())
    full = "about 9 s of work are accepted"

    def answered(route: Route) -> None:
        route.fulfill(status=429, headers={"retry-after": "7"}, json={"error": full})

    page.clock.pause_at(page.evaluate("Date.now()") + 1000)
    page.route(PREDICT, answered, times=1)
    tile = start(page)
    expect(tile.locator(".told")).to_have_text(f"{full}; trying again in 7 s")
    expect(page.locator("#news")).to_have_text(f"{full}. Trying again in 7 seconds.")
    page.clock.run_for(2000)
    expect(tile.locator(".told")).to_have_text(f"{full}; trying again in 5 s")
    page.clock.run_for(5000)
    finished(tile)
    page.route(PREDICT, answered, times=1)
    again = start(page)
    again.get_by_role("button", name="Try now").click()
    finished(again)


def test_a_refusal_is_shown_in_the_servers_own_words(page):
    tile = start(page, num_inference_steps=1001)
    expect(tile.locator(".told")).to_have_text(re.compile("must suit DDIMScheduler, which cannot make 1001 steps"))
    expect(tile).to_have_attribute("data-state", "failed")
    page.route(PREDICT, lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"), times=1)
    tile.get_by_role("button", name="Try again").click()
    expect(tile.locator(".told")).to_have_text("The server answered 502 Bad Gateway.")
    late = 'event: error\ndata: {"status": 504, "error": "not finished after 300 s"}\n\n'
    page.route(PREDICT, lambda route: route.fulfill(content_type="text/event-stream", body=late), times=1)
    tile.get_by_role("button", name="Try again").click()
    expect(tile.locator(".told")).to_have_text("not finished after 300 s")


class Relay(socketserver.ThreadingTCPServer):
    """Passes everything on to a port, until it is cut."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self._onward = ("127.0.0.1", port)
        self._lines: list[socket.socket] = []
        self._whole = True
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def finish_request(self, request: socket.socket, client_address: object) -> None:
        if not self._whole:
            return
        onward = socket.create_connection(self._onward)
        self._lines += [request, onward]
        threading.Thread(target=self._pass_on, args=(onward, request), daemon=True).start()
        self._pass_on(request, onward)

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while (data := one.recv(1 << 16)) and self._whole:
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        self._whole = False
        for line in self._lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True


def test_a_connection_that_breaks_is_told(visit, server):
    relay = Relay(server.port)
    page = visit(address=f"http://127.0.0.1:{relay.server_address[1]}")
    expect(page.locator("#readiness")).to_have_text("ready")
    tile = start_long(page)
    expect(tile.locator(".told")).to_have_text(re.compile(r"^step \d+ of 1000$"))
    relay.cut()
    lost = r"The connection was lost at step \d+ of 1000\. The picture did not arrive\."
    expect(tile.locator(".told")).to_have_text(re.compile(lost))
    expect(page.locator("#readiness")).to_have_text("The server cannot be reached.")
    relay.mend()
    expect(page.locator("#readiness")).to_have_text("ready")
    expect(tile.get_by_role("button", name="Try again")).to_be_visible()
    relay.shutdown()
    relay.server_close()


# ---------------------------------------------------------------- for everybody


def test_with_the_keyboard_alone(page):
    page.keyboard.press("Tab")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    finished(page.locator(".tile"))
    stops = tab_through(page)
    assert {"Start", "Defaults", "num_inference_steps", "seed", "More", "Copy", "Download", "curl"} <= set(stops)
    while page.evaluate("document.activeElement.textContent") != "Again with this seed":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".tile")).to_have_count(2)
    newest = page.locator(".tile").first
    finished(newest)
    expect(newest.get_by_role("button", name="Again with this seed")).to_be_focused()
    start_long(page)
    expect(newest).to_have_attribute("data-state", "running")
    page.keyboard.press("Escape")
    expect(newest).to_have_attribute("data-state", "cancelled")


def tab_through(page: Page) -> list[str]:
    """Names of all that the Tab key reaches, once around; each shows that it has the focus."""
    stops = []
    page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => [document.activeElement, getComputedStyle(document.activeElement)]
                .map((it, i) => i ? it.outlineStyle + it.outlineWidth : it.name || it.textContent.trim())"""
        )
        if page.evaluate("document.activeElement === document.body"):
            return stops
        assert outline == "solid2px", name
        stops.append(name)
    raise AssertionError(f"no end of stops: {stops}")


def test_every_control_and_picture_has_a_name(page):
    finished(start(page))
    start(page, num_inference_steps=1001)
    start_long(page)
    page.locator("details").evaluate_all("all => all.forEach(details => details.open = true)")
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "textbox", "spinbutton", "combobox", "image", "progressbar", "DisclosureTriangle"}
    named = [(node["role"]["value"], node["name"]["value"].strip()) for node in nodes if node["role"]["value"] in roles]
    assert {role for role, _ in named} == roles
    assert [role for role, name in named if not name] == []
    assert page.locator("html").get_attribute("lang") == "en"


# Texts whose contrast with what lies behind them is below 4.5, by https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio.
FAINT = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => channels(colour).slice(0, 3).map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return (channels(colour)[3] ?? 1) === 1 ? colour : behind(element.parentElement);
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility() &&
    [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()));
  const ratio = (element) => {
    const [dark, light] = [getComputedStyle(element).color, behind(element)].map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  return [texts.length, texts.filter((element) => ratio(element) < 4.5).map((element) => element.textContent.trim())];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(visit, scheme):
    page = visit(color_scheme=scheme, reduced_motion="reduce")
    finished(start(page, PROMPT * 5))  # too long: there is a warning
    expect(start(page, num_inference_steps=1001)).to_have_attribute("data-state", "failed")
    page.locator("details").evaluate_all("all => all.forEach(details => details.open = true)")
    expect(page.locator(".caution").last).to_be_visible()
    count, faint = page.evaluate(FAINT)
    assert count > 40
    assert faint == []


@pytest.mark.parametrize(("motion", "moving"), [("reduce", 0), ("no-preference", 1)])
def test_nothing_moves_for_those_who_do_not_want_it(visit, motion, moving):
    page = visit(reduced_motion=motion)
    expect(page.locator("#readiness")).to_have_text("ready")
    page.route(PREDICT, lambda route: route.fulfill(status=503, json={"error": "not ready"}))
    page.route(READINESS, lambda route: route.fulfill(status=503, json={"error": "not ready"}))
    expect(start(page)).to_have_attribute("data-state", "asleep")
    page.mouse.move(0, 0)
    running = "document.getAnimations().filter((each) => each instanceof CSSAnimation).length"
    assert page.evaluate(running) == moving


def test_a_screen_reader_is_not_told_each_step(visit):
    page = visit(lambda page: page.clock.install())
    expect(page.locator("#readiness")).to_have_text("ready")
    page.clock.pause_at(page.evaluate("Date.now()") + 60_000)
    page.evaluate(
        """() => { window.heard = [];
            new MutationObserver(() => heard.push(news.textContent)).observe(news, { childList: true }); }"""
    )
    finished(start(page, seed=3, num_inference_steps=40))
    assert page.evaluate("heard") == ["Started.", "The picture is ready. Its seed is 3."]
    tile = start_long(page)
    expect(tile).to_have_attribute("data-state", "running")
    page.clock.run_for(10_001)
    expect(page.locator("#news")).to_have_text(re.compile(r"^Step \d+ of 1000\.$"))
    page.keyboard.press("Escape")
    expect(page.locator("#news")).to_have_text("Cancelled.")


def test_a_phone_need_not_scroll_sideways(visit):
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    expect(page.locator("#readiness")).to_have_text("ready")
    page.get_by_label("Prompt", exact=True).fill("longword" * 20)
    page.locator("#start").tap()  # the parameters are out of the way
    tile = page.locator(".tile").first
    expect(tile.locator(".frame")).to_be_in_viewport()
    finished(tile)
    page.locator("details").evaluate_all("all => all.forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    small = """all => all.filter(it => it.checkVisibility() && it.getBoundingClientRect().height < 24).length"""
    assert page.locator("button, input, select, textarea, summary, a.button").evaluate_all(small) == 0


# ---------------------------------------------------------------- how it is served


def test_the_policy_is_in_force_and_a_breach_would_be_seen(page, server, complaints):
    policy = server.client.get("/ui").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    page.evaluate("fetch('http://example.invalid/').catch(() => null)")
    assert len(complaints) >= 2
    complaints.clear()


def test_nothing_is_fetched_from_elsewhere(visit, server):
    asked: list[str] = []
    page = visit(lambda page: page.on("request", lambda request: asked.append(request.url)))
    finished(start(page))
    elsewhere = [url for url in asked if not url.startswith((server.url, "data:", f"blob:{server.url}"))]
    assert asked
    assert elsewhere == []


def test_the_page_can_be_left_out(volume):
    with Server(arguments(volume, "--ui", "false"), name="shapes") as bare:
        bare.wait_until_open()
        assert [bare.client.get(path).status_code for path in ("/ui", "/ui/page.js", "/ui/page.css")] == [404] * 3
        assert bare.client.get("/livez").status_code == 200

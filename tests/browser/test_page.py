"""The exported page in headless Chromium: what is painted is E1, by hand, by key, by brush; files; offline;
360 px.
"""

import io
import re
import time

import numpy as np
import pytest
import torch
from chromium import browser, js, missing, pixels, shown
from helpers import rand
from PIL import Image

from ifcsr_lib.control import Endpoints
from ifcsr_lib.explorer import Explorer, compare
from ifcsr_lib.files.images import decode_image, encode_png, to_uint8

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
GAMMAS = [i / 10 for i in range(11)]
H, W = 200, 320


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def explorer(folder):
    """Two images, the second small; hr and x_L; written to page.html."""
    ends = [Endpoints(*(rand(1, 3, h, w, seed=k) for k in range(3))) for h, w in ((H, W), (20, 17))]
    explorer = Explorer(
        ends,
        hr=[rand(1, 3, H, W, seed=9), rand(1, 3, 20, 17, seed=9)],
        names=["first", "second"],
        model="test",
    )
    explorer.save_html(folder / "page.html")
    return explorer


@pytest.fixture(scope="module")
def driver(folder):
    (folder / "files").mkdir()
    with browser(downloads=folder / "files", flags=("--enable-unsafe-swiftshader",)) as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        yield driver


@pytest.fixture
def page(driver, explorer, folder):
    driver.get((folder / "page.html").as_uri())
    js(driver, "await ifcsr.ready;")
    yield driver
    severe = [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]
    assert not [m for m in severe if "wanted" not in m], severe


def find(driver, css):
    from selenium.webdriver.common.by import By

    return driver.find_element(By.CSS_SELECTOR, css)


def named(driver, label):
    return find(driver, f'[aria-label="{label}"]')


def choose(driver, label, value):
    js(
        driver,
        "const s = document.querySelector(`[aria-label='${args[0]}']`); s.value = args[1]; "
        "s.dispatchEvent(new Event('change'));await new Promise(r => setTimeout(r, 150));",
        label,
        value,
    )


def actions(driver):
    from selenium.webdriver import ActionChains

    return ActionChains(driver, duration=50)


def is_e1(picture, explorer, gamma, index=0, map_=None):
    """Rounded E1 of the 8-bit ends, and at most 1 level from E1 of the float ends in 8 bit (equal at both
    ends).
    """
    ends = explorer.pictures[index].parts[""]
    fid, real = (to_uint8(x)[0].astype(float) for x in (ends.x_fid, ends.x_real))
    weight = gamma if map_ is None else map_
    assert np.abs(picture - (fid + weight * (real - fid))).max() <= 0.5 + 0.01
    if map_ is None:
        apart = np.abs(picture.astype(int) - to_uint8(ends.blend(gamma))[0]).max()
        assert apart <= (1 if 0 < gamma < 1 else 0)


def saved(folder, suffix, seconds=20):
    """The file that the page downloads next."""
    for _ in range(10 * seconds):
        found = [p for p in (folder / "files").iterdir() if p.name.endswith(suffix)]
        if found:
            data = found[0].read_bytes()
            found[0].unlink()
            return data
        time.sleep(0.1)
    raise AssertionError(f"no {suffix} was saved")


def painted(driver):
    """A screenshot of the picture, overlays and all: what a person sees."""
    js(driver, "await new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)));")
    return np.asarray(Image.open(io.BytesIO(find(driver, ".ifcsr-stage").screenshot_as_png)).convert("RGB"))


@pytest.mark.parametrize("path", ["2d", "webgl2"])
def test_every_gamma_is_e1_on_both_paths(driver, explorer, folder, path):
    """getPixels, the canvas and a screenshot, at 11 gammas. WebGL2 here is SwiftShader."""
    driver.get((folder / "page.html").as_uri() + f"?path={path}")
    js(driver, "await ifcsr.ready; ifcsr.setView(0.5, 0.5, 1);")
    for gamma in GAMMAS:
        js(driver, "ifcsr.setGamma(args[0]);", gamma)
        picture = pixels(driver, H, W)
        is_e1(picture, explorer, gamma)
        canvas, how = shown(driver)
        assert how["path"] == path and canvas.shape == (H, W, 4)
        assert np.array_equal(canvas[..., :3], picture)
    assert np.array_equal(painted(driver), picture)


def test_drag(page, explorer):
    """The slider's thumb is dragged to 11 places; each time the pixels are E1 of the gamma that the page then
    has.
    """
    slider = find(page, ".ifcsr-gamma")
    width, seen = slider.size["width"] - 16, []
    for part in GAMMAS:
        start = float(slider.get_property("value"))
        offset = [round((v - 0.5) * width) for v in (start, part)]
        actions(page).move_to_element_with_offset(
            slider, offset[0], 0
        ).click_and_hold().move_to_element_with_offset(slider, offset[1], 0).release().perform()
        seen.append(js(page, "return ifcsr.gamma;"))
        is_e1(pixels(page, H, W), explorer, seen[-1])
    assert np.abs(np.array(seen) - GAMMAS).max() < 0.02, seen


def test_keyboard_typing_presets_undo(page, explorer):
    from selenium.webdriver.common.keys import Keys

    slider, typed = find(page, ".ifcsr-gamma"), named(page, "gamma as a number")
    keys = {
        Keys.HOME: 0,
        Keys.ARROW_RIGHT: 0.01,
        Keys.ARROW_UP: 0.02,
        Keys.PAGE_UP: 0.12,
        Keys.ARROW_LEFT: 0.11,
        Keys.END: 1,
        Keys.PAGE_DOWN: 0.9,
        Keys.ARROW_DOWN: 0.89,
    }
    for key, gamma in keys.items():
        slider.send_keys(key)
        assert js(page, "return ifcsr.gamma;") == pytest.approx(gamma, abs=1e-9)
        is_e1(pixels(page, H, W), explorer, gamma)
    assert slider.get_attribute("aria-valuetext") == "gamma 0.89, nearer to realism"
    typed.send_keys(Keys.CONTROL, "a", Keys.NULL, "0.123", Keys.ENTER)
    is_e1(pixels(page, H, W), explorer, 0.123)
    time.sleep(0.8)  # a pause: the next move is another step of undo
    for gamma in ("0", "0.25", "0.5", "0.75", "1"):
        named(page, f"gamma {gamma}").click()
        is_e1(pixels(page, H, W), explorer, float(gamma))
    named(page, "undo (Ctrl+Z)").click()
    assert js(page, "return ifcsr.gamma;") == 0.123
    slider.send_keys(Keys.CONTROL, Keys.SHIFT, "z")
    assert js(page, "return ifcsr.gamma;") == 1
    typed.send_keys(Keys.CONTROL, "a", Keys.NULL, "7", Keys.ENTER)
    assert "type a number from 0 to 1" in find(page, ".ifcsr-message").text
    page.get_log("browser")  # the refused number is in the log, as it should be


def test_wipe_and_hold(page, explorer):
    """Left of the line the HR, right of it the blend, as a screenshot has them; C held shows the HR
    everywhere.
    """
    js(page, "ifcsr.setGamma(0.3);")
    choose(page, "compare with", "HR")
    hr, blend, handle = to_uint8(explorer.pictures[0].hr)[0], pixels(page, H, W), find(page, ".ifcsr-wipe")
    actions(page).click_and_hold(handle).move_by_offset(-80, 0).release().perform()
    assert handle.get_attribute("aria-valuenow") == "25"
    seen = painted(page)
    assert np.array_equal(seen[40:80, :60], hr[40:80, :60]) and np.array_equal(seen[:, 100:], blend[:, 100:])
    stage = find(page, ".ifcsr-stage")
    js(page, "document.querySelector('.ifcsr-stage').focus();")
    actions(page).key_down("c").perform()
    assert np.array_equal(painted(page)[40:, 20:], hr[40:, 20:])
    actions(page).key_up("c").perform()
    assert np.array_equal(painted(page)[:, 100:], blend[:, 100:])
    assert stage.get_attribute("aria-label")
    choose(page, "compare with", "bicubic")
    assert np.array_equal(painted(page)[40:80, :60], to_uint8(explorer.pictures[0].x_L)[0][40:80, :60])


def test_zoom_pan_and_magnifier(page, explorer):
    js(page, "ifcsr.setGamma(0.6);")
    stage, whole = find(page, ".ifcsr-stage"), pixels(page, H, W)
    page.execute_cdp_cmd(
        "Input.dispatchMouseEvent",
        {
            "type": "mouseWheel",
            "x": stage.rect["x"] + 160,
            "y": stage.rect["y"] + 100,
            "deltaX": 0,
            "deltaY": -120,
        },
    )
    time.sleep(0.3)
    canvas, how = shown(page)
    assert how["spot"]["zoom"] == 2 and how["spot"]["x0"] == 80
    # nearest neighbour of E1
    assert np.array_equal(canvas[..., :3], whole[50:150, 80:240].repeat(2, 0).repeat(2, 1))
    actions(page).click_and_hold(stage).move_by_offset(20, -10).release().perform()
    canvas, how = shown(page)
    assert (how["spot"]["x0"], how["spot"]["y0"]) == (70, 55)
    assert np.array_equal(canvas[..., :3], whole[55:155, 70:230].repeat(2, 0).repeat(2, 1))
    named(page, "fit the window (key 0)").click()
    js(page, "document.querySelector('.ifcsr-stage').focus();")
    actions(page).send_keys("m").move_to_element_with_offset(stage, 10, 5).perform()
    time.sleep(0.1)
    reading = find(page, ".ifcsr-reading").text
    x, y = map(int, re.match(r"x (\d+), y (\d+): ", reading).groups())
    assert abs(x - 170) <= 1 and abs(y - 105) <= 1
    lens = js(
        page,
        "const c = document.querySelector('.ifcsr-lens'); return [c.hidden, c.width, "
        "[...c.getContext('2d').getImageData(4, 4, 1, 1).data]];",
    )
    assert lens[:2] == [False, 168] and lens[2][:3] == whole[y - 10, x - 10].tolist()
    assert f"x {x}, y {y}: {' '.join(map(str, whole[y, x]))} (" in reading


def test_brush_and_map_files(page, explorer, folder):
    """Paint, export, clear, import: the same pixels; undo takes the stroke back; Python's blend(map) gives
    the same picture.
    """
    js(page, "ifcsr.setGamma(0.2);")
    plain = pixels(page, H, W)
    find(page, ".ifcsr-check:nth-of-type(2) input").click()  # brush
    stage = find(page, ".ifcsr-stage")
    actions(page).move_to_element_with_offset(stage, -60, 0).click_and_hold().move_by_offset(
        100, 20
    ).release().perform()
    painted_ = pixels(page, H, W)
    moved = np.abs(painted_.astype(int) - plain).max(-1) > 0
    assert moved[100, 100] and not moved[:50].any() and not moved[150:].any() and 0.03 < moved.mean() < 0.3
    named(page, "export the gamma map as a grey PNG").click()
    grey = decode_image(saved(folder, "_gamma_map.png"), "map").rgb[:, :1]
    # the exported map is rounded to 1/255: half a step times 255 levels, and the rounding of the pixel
    assert np.abs(painted_.astype(int) - to_uint8(explorer.pictures[0].parts[""].blend(grey))[0]).max() <= 1
    is_e1(painted_, explorer, 0.2, map_=exact_map(page))
    js(page, "document.querySelector('.ifcsr-stage').focus();")
    actions(page).key_down("\ue009").send_keys("z").key_up("\ue009").perform()
    assert np.array_equal(pixels(page, H, W), plain)
    (folder / "map.png").write_bytes(encode_png(grey))
    find(page, 'input[type=file][accept*="png"]').send_keys(str(folder / "map.png"))
    time.sleep(0.5)
    is_e1(pixels(page, H, W), explorer, 0.2, map_=grey[0, 0, :, :, None].numpy())
    named(page, "export the gamma map as a grey PNG").click()
    assert torch.equal(decode_image(saved(folder, "_gamma_map.png"), "map").rgb[:, :1], grey)
    assert (
        "PSNR" in find(page, ".ifcsr-numbers").text
        and "with the painted map" in find(page, ".ifcsr-numbers").text
    )
    (folder / "wrong.png").write_bytes(encode_png(rand(1, 1, 20, 20)))
    find(page, 'input[type=file][accept*="png"]').send_keys(str(folder / "wrong.png"))
    time.sleep(0.3)
    assert "wrong.png is 20x20; allowed: 320x200" in find(page, ".ifcsr-message").text
    page.get_log("browser")


def test_brush_size_strength_and_erase(page, explorer):
    """A larger brush covers more, a weaker one moves less, erasing gives the plain blend back bit for bit."""
    js(page, "ifcsr.setGamma(0);")
    plain = pixels(page, H, W).astype(int)
    find(page, ".ifcsr-check:nth-of-type(2) input").click()  # brush
    stage, covered, strongest = find(page, ".ifcsr-stage"), [], []
    slide = (
        "for (const [label, value] of args) { const b = "
        "document.querySelector(`input[aria-label='${label}']`);b.value = value; b.dispatchEvent(new "
        "Event('input', {bubbles: true})); }"
    )
    for size, strength in ((20, 1), (60, 1), (60, 0.1)):
        js(page, slide, ["brush size in image pixels", size], ["brush strength", strength])
        actions(page).move_to_element(stage).click().perform()
        apart = np.abs(pixels(page, H, W).astype(int) - plain).max(-1)
        covered.append((apart > 0).sum())
        strongest.append(apart.max())
        named(page, "clear the gamma map").click()
        assert np.array_equal(pixels(page, H, W), plain)
    assert covered[1] > 4 * covered[0] and strongest[2] < 0.3 * strongest[1]
    actions(page).move_to_element(stage).click().perform()
    assert not np.array_equal(pixels(page, H, W), plain)
    js(
        page,
        "[...document.querySelectorAll('.ifcsr-check')].find(l => l.textContent === "
        "'erase').querySelector('input').click();",
    )
    # the edge of the brush is soft
    js(page, slide, ["brush size in image pixels", 160], ["brush strength", 1])
    actions(page).move_to_element(stage).click_and_hold().move_by_offset(4, 0).move_by_offset(
        -8, 0
    ).release().perform()
    assert np.array_equal(pixels(page, H, W), plain)


def exact_map(page):
    cover, paint = js(page, "return [Array.from(ifcsr.map.cover), Array.from(ifcsr.map.paint)];")
    cover, paint = (np.array(v, float).reshape(H, W, 1) for v in (cover, paint))
    return ((255 - cover) * 0.2 + paint) / 255


@pytest.mark.parametrize("bits", [8, 16])
def test_export_opens_and_matches(page, explorer, folder, bits):
    js(page, "ifcsr.setGamma(0.35);")
    choose(page, "bits per channel of the export", str(bits))
    named(page, "the whole picture as a PNG file").click()
    data = saved(folder, "first_gamma_0.350.png")
    photo = decode_image(data, "export")
    ends = explorer.pictures[0].parts[""]
    levels = [
        torch.from_numpy(to_uint8(x)[0].astype(np.float64)).permute(2, 0, 1) / 255
        for x in (ends.x_fid, ends.x_real)
    ]
    assert photo.bits == bits and (photo.rgb[0].double() - torch.lerp(*levels, 0.35)).abs().max() <= 0.501 / (
        2**bits - 1
    ) + 2e-5 * (bits == 8)
    if bits == 8:
        assert np.array_equal(to_uint8(photo.rgb)[0], pixels(page, H, W))
    with Image.open(io.BytesIO(data)) as image:
        assert (
            image.text["gamma"] == "0.35"
            and image.text["model"] == "test"
            and image.text["hash"] == "unknown"
        )


def test_a_pair_opens_in_the_page(page, folder):
    ends = Endpoints(*(rand(1, 3, 44, 60, seed=20 + k) for k in range(3)))
    path = ends.save(folder / "pair.ifcsr.zip", "another model", gamma=0.3)
    find(page, "input[type=file][accept='.zip']").send_keys(str(path))
    time.sleep(0.8)
    js(page, "await ifcsr.ready;")
    assert js(page, "return [ifcsr.gamma, ifcsr.state.index];") == [0.3, 2]
    for gamma in (0.0, 0.3, 1.0):
        js(page, "ifcsr.setGamma(args[0]);", gamma)
        apart = np.abs(pixels(page, 44, 60).astype(int) - to_uint8(ends.blend(gamma))[0])
        assert apart.max() <= (1 if gamma == 0.3 else 0)
    assert "another model" in find(page, ".ifcsr-made").text
    (folder / "bad.ifcsr.zip").write_bytes(path.read_bytes()[:4000])
    find(page, "input[type=file][accept='.zip']").send_keys(str(folder / "bad.ifcsr.zip"))
    time.sleep(0.3)
    assert "bad.ifcsr.zip is not a whole .ifcsr.zip" in find(page, ".ifcsr-message").text
    page.get_log("browser")


def test_gallery_same_or_own_gamma(page, explorer):
    second, same = find(page, ".ifcsr-thumb:nth-child(2)"), find(page, ".ifcsr-top .ifcsr-check input")
    js(page, "ifcsr.setGamma(0.2);")
    second.click()
    js(page, "await ifcsr.ready;")
    is_e1(pixels(page, 20, 17), explorer, 0.2, 1)
    same.click()
    js(page, "ifcsr.setGamma(0.9);")
    find(page, ".ifcsr-thumb:nth-child(1)").click()
    js(page, "await ifcsr.ready;")
    assert js(page, "return [ifcsr.gamma, ifcsr.state.gammas];") == [0.2, [0.2, 0.9]]
    assert second.get_attribute("aria-checked") == "false" and second.get_attribute("role") == "radio"


def test_numbers_are_those_of_python(page, explorer):
    explorer.index = 0
    for gamma in (0.0, 0.4, 1.0):
        js(page, "ifcsr.setGamma(args[0]);", gamma)
        n, text = explorer.numbers(gamma), find(page, ".ifcsr-numbers").text
        assert f"PSNR {n['psnr']:.2f} dB (best {n['best_psnr']:.2f} at γ {n['best_gamma']:.2f})" in text
        assert (
            f"ends differ by {n['difference']:.2f} of 255" in text
            and f"LQ consistency {n['consistency']:.2f} dB" in text
        )


def test_the_marker_rides_on_the_psnr_curve(page, explorer):
    find(page, ".ifcsr-curves summary").click()
    for gamma in (0.0, 0.3, 1.0):
        js(
            page,
            "ifcsr.setGamma(args[0]); await new Promise(requestAnimationFrame); await new "
            "Promise(requestAnimationFrame);",
            gamma,
        )
        chart = "document.querySelector('.ifcsr-chart')"
        name, value, x = js(
            page,
            f"return [{chart}.querySelector('span').textContent, {chart}.querySelector('output').textContent,"
            f"+{chart}.querySelector('.ifcsr-marker').getAttribute('x1')];",
        )
        assert name.startswith("PSNR") and x == pytest.approx(6 + gamma * 188)
        # read off 50 straight pieces: the curve bends by less than .02 dB in one
        assert float(value) == pytest.approx(explorer.numbers(gamma)["psnr"], abs=0.02)


def test_reduced_motion_is_respected(driver, explorer, folder):
    driver.get((folder / "page.html").as_uri())
    seconds = []
    for wish in ("no-preference", "reduce"):
        media = {"features": [{"name": "prefers-reduced-motion", "value": wish}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        seconds.append(
            js(
                driver,
                "return [...document.querySelectorAll('.ifcsr *')].map(e => getComputedStyle(e))"
                ".filter(s => parseFloat(s.transitionDuration) || s.animationName !== 'none').length;",
            )
        )
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert seconds[0] > 0 and seconds[1] == 0


def test_difference_map_is_bright_where_the_ends_differ(driver, folder):
    fid, real = torch.full((1, 3, H, W), 0.4), torch.full((1, 3, H, W), 0.4)
    real[..., :160] += 64 / 255
    driver.get(Explorer(Endpoints(fid, real)).save_html(folder / "heat.html").as_uri())
    js(driver, "await ifcsr.ready;")
    choose(driver, "overlay", "difference")
    seen = painted(driver).astype(int)
    assert (seen[:, :150].min(-1) > 120).all() and seen[:, 170:].max() < 40


def test_calm_offline_and_closed(page):
    """No layout shift in a sweep of gamma, nothing requested, and the page's policy refuses a request."""
    out = js(
        page,
        """
      const shifts = [], watcher = new PerformanceObserver(l => shifts.push(...l.getEntries()));
      watcher.observe({type: "layout-shift", buffered: false});
      for (let i = 0; i <= 40; i++) { ifcsr.setGamma(i / 40); await new Promise(requestAnimationFrame); }
      const refused = new Promise(r =>
        document.addEventListener("securitypolicyviolation", e => r(e.effectiveDirective)));
      const failed = await fetch("http://127.0.0.1:9/").then(() => "reached", () => "failed");
      return [shifts.length, performance.getEntriesByType("resource").length, failed, await refused];""",
    )
    assert out == [0, 0, "failed", "connect-src"]
    page.get_log("browser")


def test_errors_are_shown(page):
    for g in ("-0.1", "1.1", "NaN", "'0.5'", "null"):
        with pytest.raises(RuntimeError, match="allowed: numbers from 0 to 1"):
            js(page, f"ifcsr.setGamma({g});")
    js(
        page,
        "document.body.append(Object.assign(document.createElement('script'), {text: 'throw new "
        "Error(`wanted <here>`)'}));",
    )
    assert (
        find(page, ".ifcsr-message").text.endswith("wanted <here>")
        and find(page, ".ifcsr-message").get_attribute("role") == "alert"
    )


def test_pixels_before_they_are_decoded(page, folder):
    """ready is a promise, there from the first moment; until it is kept, getPixels says what to wait for,
    then it is E1.
    """
    script = """Object.defineProperty(window, "ifcsr", {configurable: true, set(api) {
      Object.defineProperty(window, "ifcsr", {value: api});
      window.early = [api.ready instanceof Promise, api.gamma];
      try { api.getPixels(); window.early.push("no error"); }
      catch (error) { window.early.push(error.message); }
    }});"""
    added = page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        page.get((folder / "page.html").as_uri())
        assert js(page, "return window.early;") == [
            True,
            0.5,
            "the pictures are not decoded yet; await ready first, then call getPixels",
        ]
        assert js(page, "await ifcsr.ready; return ifcsr.getPixels().length;") == 4 * H * W
        with pytest.raises(RuntimeError, match="pane 1 does not exist; allowed: 0 to 0"):
            js(page, "ifcsr.getPixels(1);")
    finally:
        page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_damaged_picture_is_shown(driver, explorer, folder):
    text = (folder / "page.html").read_text(encoding="utf-8")
    at = text.index('"0/0/fid": "') + 2000
    (folder / "damaged.html").write_text(
        text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :], encoding="utf-8"
    )
    driver.get((folder / "damaged.html").as_uri())
    time.sleep(1)
    assert "first (0/0/fid) is not a whole PNG image" in find(driver, ".ifcsr-message").text


def test_phone(driver, explorer, folder):
    """360 px wide, touch: nothing sticks out, controls are at least 24 px high, a tap and a pinch work, every
    control has a name.
    """
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    try:
        driver.get((folder / "page.html").as_uri())
        wide, small, bare = js(
            driver,
            """await ifcsr.ready;
          const kinds = "button, select, input:not([type=file]), canvas.ifcsr-main";
          const all = [...document.querySelectorAll(kinds)].filter(e => e.offsetParent);
          const named = e => e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim();
          const wide = all.filter(e => e.getBoundingClientRect().right > 360.5).length;
          const small = all.filter(e => e.type !== "checkbox" && e.getBoundingClientRect().height < 24);
          const bare = all.filter(e => !e.matches("canvas") && !named(e));
          return [wide + Math.max(0, document.documentElement.scrollWidth - 360),
            small.map(e => e.outerHTML), bare.map(e => e.outerHTML)];""",
        )
        assert (wide, small, bare) == (0, [], [])
        slider = js(
            driver,
            "const r = document.querySelector('.ifcsr-gamma').getBoundingClientRect(); return [r.left, "
            "r.top, r.width, r.height];",
        )
        touch = {"x": slider[0] + 0.75 * slider[2], "y": slider[1] + slider[3] / 2}
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [touch]})
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        gamma = js(driver, "return ifcsr.gamma;")
        assert gamma == pytest.approx(0.75, abs=0.05)
        is_e1(pixels(driver, H, W), explorer, gamma)
        x, y = js(
            driver,
            "const r = document.querySelector('.ifcsr-stage').getBoundingClientRect(); return [r.left + "
            "r.width / 2, r.top + r.height / 2];",
        )
        for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 60), ("touchMove", 80)):
            points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
            driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        assert js(driver, "return ifcsr.state.view[2];") >= 4
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_compare_page(driver, folder):
    ends = {
        label: Endpoints(rand(1, 3, 40, 60, seed=s), rand(1, 3, 40, 60, seed=s + 1))
        for label, s in (("A", 30), ("B", 40))
    }
    driver.get(compare(ends).save_html(folder / "compare.html").as_uri())
    js(driver, "await ifcsr.ready; ifcsr.setGamma(0.4);")
    for pane, part in enumerate(ends.values()):
        assert np.abs(pixels(driver, 40, 60, pane).astype(int) - to_uint8(part.blend(0.4))[0]).max() <= 1

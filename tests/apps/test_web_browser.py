"""The page in a real browser: Debian's Chromium without a window, on loopback.

The pictures of docs/, from trained models and chosen images:
SIIMCOVID_WEIGHTS=runs/demo/weights SIIMCOVID_IMAGES=a.dcm:b.dcm SIIMCOVID_SCREENSHOTS=docs pytest -k screen THIS_FILE
"""

import io
import json
import os
import shutil
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import waitress
from PIL import Image

from siimcovid.apps.web.request_queue import Queue
from siimcovid.apps.web.uploaded_files import Limits
from siimcovid.apps.web.web_app import create_app
from siimcovid.inference.trained_model import load
from siimcovid.synthetic import radiograph
from support.dicom_files import write
from support.tiny_weights import write_weights

webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install siimcovid[test]")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium and chromedriver: apt-get install chromium chromium-driver"
    ),
]
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
PATIENCE = 120  # seconds; a busy machine


@pytest.fixture(scope="module")
def queue() -> Queue:
    return Queue(places=1, waiting=2)


@pytest.fixture(scope="module")
def address(tmp_path_factory, queue):
    """The page, served."""
    trained = os.environ.get("SIIMCOVID_WEIGHTS")
    folder = Path(trained) if trained else write_weights(tmp_path_factory.mktemp("weights"))
    app = create_app(load(folder), Limits(megabytes=8, images=3), queue)
    server = waitress.create_server(app, host="127.0.0.1", port=0, threads=8, ident=None)
    threading.Thread(target=server.run, daemon=True).start()
    yield f"http://127.0.0.1:{server.effective_port}"
    server.close()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    """A DICOM of a synthetic image with findings and a PNG of another, or those of SIIMCOVID_IMAGES."""
    if chosen := os.environ.get("SIIMCOVID_IMAGES"):
        return [str(Path(path).absolute()) for path in chosen.split(":")]
    folder = tmp_path_factory.mktemp("images")
    first, second = (draw(seed) for seed in (1, 2))
    Image.fromarray(second).save(folder / "second.png")
    return [str(write(folder / "first.dcm", first, 8)), str(folder / "second.png")]


def draw(seed: int) -> np.ndarray:
    image = radiograph.render(radiograph.Anatomy.draw(seed), "typical", 2, (420, 340), seed)
    return (image.pixels * 255).astype(np.uint8)


@pytest.fixture
def page(browser, address):
    """The fresh page on a desktop's screen."""
    browser.set_window_size(1280, 1000)
    browser.get(address)
    return browser


def find(page, selector: str):
    return page.find_element(By.CSS_SELECTOR, selector)


def count(page, selector: str) -> int:
    return len(page.find_elements(By.CSS_SELECTOR, selector))


def wait(page, condition):
    return WebDriverWait(page, PATIENCE, 0.05).until(lambda _: condition())


def predict(page, *paths: str) -> None:
    """Choose images, press the button and wait for the result.

    A preview that appears moves the button, so they are waited for; a zip has none.
    """
    find(page, "#images").send_keys("\n".join(paths))
    zips = sum(path.endswith(".zip") for path in paths)
    wait(page, lambda: count(page, "#previews img") == len(paths) - zips)
    find(page, "#predict").click()
    wait(page, lambda: count(page, "#result-title"))
    wait(page, lambda: find(page, "#predict").is_enabled())


def slide(page, value: float) -> None:
    """Put the slider where the arrow keys would."""
    page.execute_script(
        "const s = document.getElementById('threshold'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        value,
    )


def posts(page) -> int:
    """Requests to the server since the last call."""
    return sum(entry["method"] == "POST" for entry in requests(page))


def requests(page) -> list[dict]:
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return [m["params"]["request"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def numbers(page) -> dict:
    return json.loads(find(page, "#data").get_attribute("textContent"))


def test_upload_switch_slide(page, images, downloads):
    """One upload is enough for every model and every threshold, and the table says what the image shows."""
    requests(page)
    find(page, "#images").send_keys(images[0])
    wait(page, lambda: page.execute_script("return document.querySelector('#previews img')?.naturalWidth") or 0)
    assert posts(page) == 1  # a DICOM's preview comes from the server
    find(page, "#predict").click()
    wait(page, lambda: count(page, "#result-title"))
    assert posts(page) == 1
    assert page.switch_to.active_element.get_attribute("id") == "result-title"
    image = numbers(page)["images"][0]
    for model in ("rcnn", "yolo", "ensemble"):
        find(page, f"label:has(input[value={model}])").click()
        for value in (0, 0.25, 0.45, 1):
            slide(page, value)
            expected = [box for box in image["boxes"][model] if box["score"] >= value]
            assert count(page, ".boxes .frame") == len(expected) == count(page, ".boxlist tbody tr")
            said = f"{len(expected)} of {len(image['boxes'][model])} boxes score {value:.2f} or more"
            assert find(page, ".count").text == said
            if expected:
                row = find(page, ".boxlist tbody tr").text.split()
                edges = [str(int(expected[0][edge] + 0.5)) for edge in ("left", "top", "right", "bottom")]
                assert row == ["1", f"{expected[0]['score']:.2f}", *edges]
                drawn = find(page, ".boxes .frame")
                assert float(drawn.get_attribute("x")) == expected[0]["left"]
    assert posts(page) == 0
    wait(page, lambda: find(page, "#status").text == "Ensemble: 0 boxes from score 1.00.")  # for a screen reader


def test_heat_map(page, images):
    predict(page, images[0])
    heat = find(page, "image.heat")
    assert heat.get_attribute("visibility") == "hidden"
    assert not find(page, ".legend").is_displayed()
    find(page, "#heat").click()
    assert heat.get_attribute("visibility") == "visible"
    assert find(page, ".legend").is_displayed()


def test_downloads(page, images, downloads):
    predict(page, *images)
    slide(page, 0.2)
    for old in downloads.iterdir():
        old.unlink()
    find(page, "[data-file='result.json']").click()
    page.find_elements(By.CSS_SELECTOR, ".save-picture")[1].click()
    wait(page, lambda: sorted(p.name for p in downloads.iterdir()) == ["image-2-ensemble.png", "result.json"])
    result = json.loads((downloads / "result.json").read_text())
    assert result == numbers(page)
    assert len(result["images"]) == 2
    picture = Image.open(downloads / "image-2-ensemble.png").convert("RGB")
    ratio = result["images"][1]["columns"] / result["images"][1]["rows"]
    assert picture.width / picture.height == pytest.approx(ratio, rel=0.01)
    coloured = np.ptp(np.asarray(picture).astype(int), axis=2) > 60  # the image is grey
    assert coloured.any()


def test_zip_of_a_study(page, images, downloads, tmp_path):
    """A zip goes up as one file, stands for its images, and the tables can be saved."""
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for number, path in enumerate(images):
            archive.write(path, f"a study/series {number}/{Path(path).name}")
        archive.writestr("readme.txt", "hello")
    predict(page, str(tmp_path / "study.zip"))
    assert "Zip: study.zip" in find(page, "#previews").text
    assert count(page, ".picture") == 2
    assert find(page, "#left-out").text == "1 file of the zip is no image and was left out."
    assert "study.zip/a study/series 1/second.png" in [e.text for e in page.find_elements(By.CSS_SELECTOR, ".name")]
    for old in downloads.iterdir():
        old.unlink()
    names = ["boxes.csv", "coco.json", "predictions.csv"]
    for name in names:
        find(page, f"[data-file='{name}']").click()
    wait(page, lambda: sorted(p.name for p in downloads.iterdir()) == names)
    result = numbers(page)
    boxes = pd.read_csv(downloads / "boxes.csv")
    assert len(boxes) == sum(len(found) for image in result["images"] for found in image["boxes"].values())
    assert pd.read_csv(downloads / "predictions.csv")["name"].tolist() == [i["name"] for i in result["images"]]
    assert len(json.loads((downloads / "coco.json").read_text())["images"]) == 2


def test_bad_file_is_said_and_the_page_goes_on(page, images, tmp_path):
    (tmp_path / "letter.png").write_text("Dear doctor, " * 100)
    find(page, "#images").send_keys(str(tmp_path / "letter.png"))
    find(page, "#predict").click()
    wait(page, lambda: find(page, "#message").text)
    assert "neither DICOM nor PNG nor JPEG" in find(page, "#message").text
    assert find(page, "#message").get_attribute("role") == "alert"
    find(page, "#images").clear()
    predict(page, images[1])
    assert find(page, "#message").text == ""


def test_too_much_is_said_before_it_is_sent(page, images, tmp_path):
    (tmp_path / "large.dcm").write_bytes(bytes(9 << 20))
    requests(page)
    find(page, "#images").send_keys(str(tmp_path / "large.dcm"))
    wait(page, lambda: "at most 8 MB" in find(page, "#message").text)
    find(page, "#images").clear()
    find(page, "#images").send_keys("\n".join([images[1]] * 4))
    wait(page, lambda: "at most 3" in find(page, "#message").text)
    find(page, "#predict").click()
    assert posts(page) == 0


def test_busy_server_is_waited_for(page, images, queue):
    with queue.place():
        queue.inside += 2  # two more who wait
        find(page, "#images").send_keys(images[1])
        find(page, "#predict").click()
        wait(page, lambda: "waiting for our turn" in find(page, "#status").text)
        queue.inside -= 2
    wait(page, lambda: count(page, "#result-title"))


def test_images_can_be_dropped(page):
    data = io.BytesIO()
    Image.fromarray(draw(3)).save(data, "PNG")
    page.execute_script(
        """const images = new DataTransfer();
        images.items.add(new File([new Uint8Array(arguments[0])], "dropped.png"));
        document.getElementById("drop").dispatchEvent(
            new DragEvent("drop", {dataTransfer: images, bubbles: true, cancelable: true}));""",
        list(data.getvalue()),
    )
    wait(page, lambda: "dropped.png" in find(page, "#previews").text)
    find(page, "#predict").click()
    wait(page, lambda: count(page, "#result-title"))


def test_keyboard_alone(page, images):
    """Tab reaches everything in the order of reading, arrows move model and slider, Enter predicts."""
    order = []
    for _ in range(5):
        ActionChains(page).send_keys(Keys.TAB).perform()
        focused = page.switch_to.active_element
        order.append(focused.get_attribute("id") or focused.get_attribute("name"))
    assert order == ["images", "predict", "model", "threshold", "heat"]
    find(page, "#images").send_keys(images[1])
    find(page, "#predict").send_keys(Keys.ENTER)
    wait(page, lambda: count(page, "#result-title"))
    find(page, "#threshold").send_keys(Keys.ARROW_RIGHT)
    assert find(page, "#threshold-value").text == "0.31"
    find(page, "input[value=ensemble]").send_keys(Keys.ARROW_LEFT)
    assert find(page, ".picture").get_attribute("data-model") == "yolo"


def test_every_field_has_a_name(page, images):
    """What a screen reader says: nothing that can be used is nameless, pictures and tables are described."""
    predict(page, *images)
    page.execute_cdp_cmd("Accessibility.enable", {})
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "radio", "slider", "checkbox", "image", "table", "heading"):
        assert named.get(role), role
        assert all(named[role]), (role, named[role])
    assert "Image 1" in named["image"]
    assert named["slider"] == ["from score"]
    assert {"alert", "status", "main"} <= set(named)


def test_nothing_from_elsewhere_and_no_complaints(page, address, images):
    requests(page)
    page.get_log("browser")
    predict(page, *images)
    find(page, "#heat").click()
    for request in requests(page):
        assert request["url"].startswith((address, "data:", "blob:")), request["url"]
    assert page.get_log("browser") == []  # neither errors nor refusals of the content security policy


def test_without_script(browser, page, images):
    """The form alone brings the page back with the result."""
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.refresh()
        find(page, "#images").send_keys(images[1])
        find(page, "input[value=rcnn]").click()
        find(page, "#heat").click()
        find(page, "#predict").click()
        wait(page, lambda: count(page, "#result-title"))
        assert find(page, ".picture").get_attribute("data-model") == "rcnn"
        assert find(page, ".legend").is_displayed()
        assert find(page, "[data-file='boxes.csv']").is_displayed()
        assert not find(page, ".save-picture").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize(("name", "width", "height"), [("web-desktop", 1280, 1000), ("web-phone", 390, 844)])
def test_fits_the_screen(page, images, tmp_path, name, width, height):
    """No sideways scrolling on a desktop or a phone, and the pictures of docs/."""
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        predict(page, images[0])
        time.sleep(0.5)  # the announcement
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        if width < 500:
            page.execute_script("document.querySelector('.image').scrollIntoView()")
            controls = find(page, ".controls").rect
            assert controls["height"] < height / 4  # the slider stays in reach above the image
            page.execute_script("window.scrollBy(0, arguments[0])", -controls["height"] - 8)
            assert find(page, ".picture").rect["width"] > 0.8 * width
        else:
            page.execute_script("window.scrollTo(0, 0)")
        folder = Path(os.environ.get("SIIMCOVID_SCREENSHOTS", tmp_path))
        picture = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            folder / f"{name}.png", optimize=True
        )
        assert (folder / f"{name}.png").stat().st_size < 200_000
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

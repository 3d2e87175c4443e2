"""The page to try a network, by requests and in a real browser."""

import contextlib
import io
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import browser
import numpy as np
import processes
import pytest
from commands import command
from greens import GREEN, Greens
from PIL import Image

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from fcn_jax.demo import server  # noqa: E402  # needs what is looked for above


def photograph(height=90, width=120):
    picture = np.full((height, width, 3), (180, 140, 120), np.uint8)
    picture[20:60, 30:70] = GREEN
    return picture


def encoded(picture, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


@contextlib.contextmanager
def served(network):
    """The address of the page of a network."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    application = server.app(network, "<greens>", hosts=["127.0.0.1"])
    running = uvicorn.Server(uvicorn.Config(application, log_config=None, lifespan="off"))
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="module")
def address():
    with served(Greens()) as found:
        yield found


def post(address, data, **headers):
    """(status, body, type)."""
    request = urllib.request.Request(address, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers.get_content_type()


def picture_of(address):
    with urllib.request.urlopen(address) as answer:  # a data: address
        return Image.open(io.BytesIO(answer.read()))


def test_what_is_in_an_image(address):
    status, body, _ = post(f"{address}/segment", encoded(photograph()))
    found = json.loads(body)
    assert status == 200
    assert (found["height"], found["width"]) == (90, 120)
    assert found["areas"][1] == pytest.approx(100 * 40 * 40 / (90 * 120), abs=0.001)
    truth = (photograph() == GREEN).all(-1)
    for key in ("ids", "mask"):
        picture = picture_of(found[key])
        np.testing.assert_array_equal(np.asarray(picture), truth)
    assert picture.getpalette()[3:6] == [200, 30, 40]


@pytest.mark.parametrize("how", ["inpaint", "blur", "colour", "transparent"])
def test_without_what_is_green(how, address):
    status, body, kind = post(f"{address}/fill?classes=1&how={how}&grow=2", encoded(photograph()))
    assert (status, kind) == (200, "image/png")
    found = np.asarray(Image.open(io.BytesIO(body)))
    assert found.shape == (90, 120, 4 if how == "transparent" else 3)
    if how in ("inpaint", "transparent"):
        assert (found[..., :3][found[..., -1] > 0] if how == "transparent" else found).reshape(-1, 3).max() <= 185


@pytest.mark.parametrize(
    ("path", "data", "status", "reason"),
    [
        ("segment", b"no image", 415, "no image that can be read"),
        ("segment", b"", 400, "nothing was sent"),
        ("segment", encoded(photograph(), "jpeg")[:900], 415, "no image that can be read"),
        ("segment", bytes(server.LARGEST + 1), 413, "larger than 32 MB"),
        ("segment", encoded(np.zeros((9000, 9000), np.uint8)), 413, "9000x9000 pixels: give an image of at most 64"),
        ("fill?classes=one", b"x", 400, "classes are numbers"),
        ("fill?classes=1&how=magic", encoded(photograph()), 400, "choose from inpaint"),
    ],
)
def test_refusals(path, data, status, reason, address):
    found, body, _ = post(f"{address}/{path}", data)
    assert found == status
    assert reason in json.loads(body)["error"]


def test_another_name_is_refused(address):
    """So that no page of another site can make the browser ask this one under its own name."""
    assert post(f"{address}/segment", encoded(photograph()), Host="evil.example")[0] == 400


def test_large_and_turned_images_come_back_upright(address):
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.zeros((40, server.SHOWN * 2, 3), np.uint8)
    found = json.loads(post(f"{address}/segment", encoded(wide, "jpeg", exif=exif))[1])
    assert (found["height"], found["width"]) == (server.SHOWN, 20)


class Slow(Greens):
    """One that tells how many use it at once."""

    at_once = most = 0

    def __call__(self, image):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        time.sleep(0.1)
        self.at_once -= 1
        return super().__call__(image)


def test_several_wait_and_too_many_are_sent_away(monkeypatch):
    monkeypatch.setattr(server, "WAITING", 4)
    network, answers, seen = Slow(), [], []
    with served(network) as address:
        images = [encoded(photograph(90 + k)) for k in range(7)]
        threads = [
            threading.Thread(target=lambda data=data: answers.append(post(f"{address}/segment", data)))
            for data in images
        ]
        for thread in threads:
            thread.start()
        for _ in range(8):
            with urllib.request.urlopen(f"{address}/queue") as answer:
                seen.append(json.load(answer)["waiting"])
            time.sleep(0.03)
        for thread in threads:
            thread.join()
        with urllib.request.urlopen(f"{address}/queue") as answer:
            assert json.load(answer)["waiting"] == 0
    assert network.most == 1
    assert max(seen) == 4
    statuses = sorted(status for status, *_ in answers)
    assert statuses == [200] * statuses.count(200) + [503] * statuses.count(503)
    assert statuses.count(503) >= 1
    heights = [json.loads(body)["height"] for status, body, _ in answers if status == 200]
    assert len({*heights}) == len(heights)  # each has its own


def test_a_defect_is_a_line_and_the_server_goes_on():
    class Broken(Greens):
        def __call__(self, image):
            raise next(errors)

    errors = iter([RuntimeError("out of order"), MemoryError()])
    with served(Broken()) as address:
        for line in ("out of order", "MemoryError"):
            status, body, _ = post(f"{address}/segment", encoded(photograph()))
            assert (status, json.loads(body)["error"]) == (500, line)


@pytest.mark.needs("playwright")
def test_in_a_browser(address, tmp_path):
    """Upload, look, tick, download, remove."""
    file = tmp_path / "photograph.png"
    file.write_bytes(encoded(photograph()))
    with browser.opened() as page:
        page.goto(address)
        assert "<greens>" in page.locator("h1").inner_text()
        page.set_input_files("#file", str(file))
        page.locator("#tools").wait_for(state="visible")
        rows = page.locator("label.class:visible")
        assert [row.split("\n")[0] for row in rows.all_inner_texts()] == ["background", "square"]
        assert "14.8 %" in rows.nth(1).inner_text()
        alpha = "() => [...document.getElementById('overlay').getContext('2d').getImageData(40, 30, 1, 1).data]"
        assert page.evaluate(alpha) == [200, 30, 40, 153]
        page.locator("#opacity").fill("100")
        assert page.evaluate(alpha) == [200, 30, 40, 255]
        page.locator("#none").click()
        assert page.evaluate(alpha)[3] == 0
        page.locator("#all").click()
        assert page.evaluate(alpha)[3] == 255
        rows.nth(0).locator("input").uncheck()
        rows.nth(1).locator("input").uncheck()
        assert page.evaluate(alpha)[3] == 0
        rows.nth(1).locator("input").check()
        np.testing.assert_array_equal(_download(page, "#mask"), (photograph() == GREEN).all(-1))
        page.wait_for_timeout(200)
        cutout = _download(page, "#cutout")
        assert (cutout[..., 3] == 255 * (photograph() == GREEN).all(-1)).all()
        page.locator("#remove").click()
        page.locator("#filled").wait_for(state="visible")
        filled = _download(page, "#filled")
        assert np.abs(filled[30:50, 40:60].astype(int) - (180, 140, 120)).max() < 12
        page.screenshot(path=tmp_path / "demo.png")
        page.locator("#back").click()
        assert page.locator("#filled").is_hidden()
        page.locator("#another").click()
        (tmp_path / "no.png").write_bytes(b"no image")
        assert page.failures == []
        page.set_input_files("#file", str(tmp_path / "no.png"))
        page.get_by_text("no image that can be read").wait_for()
        assert page.outside == []


def _download(page, selector):
    with page.expect_download() as waiting:
        page.locator(selector).click()
    with Image.open(waiting.value.path()) as picture:
        return np.asarray(picture)


@pytest.mark.needs("playwright")
def test_the_camera(address):
    with browser.opened("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as page:
        page.goto(address)
        page.locator("#camera").click()
        page.locator("#take").wait_for(state="visible")
        # Not wait_for_function: what it evaluates again and again the page forbids, unless it holds at once.
        page.locator("#video").evaluate(
            "video => video.videoWidth || new Promise(done => video.addEventListener('loadedmetadata', done))"
        )
        page.locator("#take").click()
        page.locator("#tools").wait_for(state="visible")
        assert page.locator("label.class:visible").count() >= 1
        assert page.failures == page.outside == []


def test_the_command(tmp_path):
    """Started, asked, and ended by Ctrl-C without a word."""
    from test_outputs import network, params

    from fcn_jax import checkpoint

    spec = network()
    checkpoint.save_params(tmp_path / "weights", params(spec), spec)
    with processes.Job(f"--checkpoint={tmp_path / 'weights'}", "--port=0", module="fcn_jax.demo") as job:
        job.until("in a browser")
        address = job.stderr().split("open ")[1].split()[0]
        with urllib.request.urlopen(address) as answer:
            assert b"nucleus" in answer.read()
        assert post(f"{address}/segment", encoded(photograph()))[0] == 200
        taken = command("fcn_jax.demo", f"--checkpoint={tmp_path / 'weights'}", f"--port={address.rpartition(':')[2]}")
        assert "give another --port" in taken.stderr
        job.signal(signal.SIGINT)
        assert job.wait() == [0]
        assert "Traceback" not in job.stderr()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [([], "--checkpoint is missing"), (["--checkpoint=nowhere"], "no checkpoint in"), (["--port=70000"], "port")],
)
def test_refusals_of_the_command(arguments, reason):
    done = command("fcn_jax.demo", *arguments)
    assert done.returncode == 1
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

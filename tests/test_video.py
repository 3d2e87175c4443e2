"""Videos in and out: times, sound, rotation, odd sizes, damage; masks over time; what holes are filled with."""

import itertools
import os
import signal
import struct
from fractions import Fraction

import cv2
import numpy as np
import pytest
from commands import command
from greens import GREEN, Greens
from scipy import ndimage

from fcn_jax import checkpoint, fill
from fcn_jax.video import motion, process
from fcn_jax.video.reader import Frame, Reader
from fcn_jax.video.writer import Writer

av = pytest.importorskip("av")


def scene(height=48, width=64, seed=0):
    """A picture with structure at all scales, which motion can be seen by."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(height, width, 3))
    smooth = sum(ndimage.gaussian_filter(noise, (s, s, 0)) * s for s in (1, 3, 8))
    low, high = smooth.min(), smooth.max()
    return (40 + 170 * (smooth - low) / (high - low)).astype(np.uint8)


def with_square(image, top, left, side=10):
    image = image.copy()
    image[top : top + side, left : left + side] = GREEN
    return image


def make_video(path, frames, times=None, *, sound=False, codec="libx264", pixels="yuv444p", rate=25):
    """A file with these frames at these times (in hundredths of a second), and perhaps a tone."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options={"crf": "0"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        base = Fraction(1, 100)
        stream.codec_context.time_base = stream.time_base = base
        tone = out.add_stream("aac", rate=8000) if sound else None
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = (times[index] if times else 4 * index), base
            out.mux(stream.encode(picture))
        if tone is not None:
            wave = np.sin(np.arange(8000) / 3)[None].astype(np.float32)
            for start in range(0, 8000, 1000):
                block = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, start : start + 1000]), "fltp", "mono")
                block.sample_rate, block.pts, block.time_base = 8000, start, Fraction(1, 8000)
                out.mux(tone.encode(block))
            out.mux(tone.encode(None))
        out.mux(stream.encode(None))
    return path


def frames_of(path, format="rgb24"):
    with av.open(str(path)) as file:
        found = [(f.pts * f.time_base, f.to_ndarray(format=format)) for f in file.decode(video=0)]
    return [time for time, _ in found], [pixels for _, pixels in found]


def sound_of(path):
    with av.open(str(path)) as file:
        return [(p.pts * p.time_base, bytes(p)) for p in file.demux(audio=0) if p.dts is not None]


def options(**changes):
    plain = process.Options(show="overlay", classes=np.arange(256) > 0, memory=0, grow=0)
    return plain._replace(**changes)


def moving(number, step=3):
    image = scene()
    return image, [Frame(with_square(image, 18, 2 + step * k), k) for k in range(number)]


def psnr(found, truth):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((found.astype(float) - truth) ** 2)))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Converted weights, random and narrow."""
    from test_outputs import network, params

    folder = tmp_path_factory.mktemp("network") / "weights"
    spec = network()
    checkpoint.save_params(folder, params(spec), spec)
    return folder


def convert(network, source, output, *arguments):
    return command("fcn_jax.video", f"--checkpoint={network}", f"--input={source}", f"--output={output}", *arguments)


# --- the file -------------------------------------------------------------------------------------------------------


def test_times_and_sound_stay_as_they_are(network, tmp_path):
    times = [0, 3, 4, 20, 21, 50, 90]
    source = make_video(tmp_path / "in.mp4", [scene(seed=k) for k in range(7)], times, sound=True)
    assert convert(network, source, tmp_path / "out.mp4").returncode == 0
    assert frames_of(tmp_path / "out.mp4")[0] == frames_of(source)[0] == [Fraction(t, 100) for t in times]
    assert sound_of(tmp_path / "out.mp4") == sound_of(source)
    assert convert(network, source, tmp_path / "still.mp4", "--nosound").returncode == 0
    with av.open(str(tmp_path / "still.mp4")) as file:
        assert not file.streams.audio


def test_frames_out_of_order_in_avi_are_all_there(tmp_path):
    """It holds no times of frames that are stored in another order than shown."""
    source = make_video(tmp_path / "in.avi", [scene(seed=k) for k in range(25)], pixels="yuv420p")
    with Reader(str(source)) as reader:
        frames = [event for event in reader.packets() if isinstance(event, Frame)]
        assert reader.broken == 0
    assert len(frames) == 25
    assert all(before.time < after.time for before, after in itertools.pairwise(frames))
    seconds = float((frames[-1].time - frames[0].time) * reader.time_base)
    assert 0.9 < seconds < 1.1


def test_a_stream_without_times_runs_at_its_rate(tmp_path):
    make_video(tmp_path / "in.h264", [scene(seed=k) for k in range(25)])
    with Reader(str(tmp_path / "in.h264")) as reader:
        frames = [event for event in reader.packets() if isinstance(event, Frame)]
    assert len(frames) == 25
    assert 0.9 < float((frames[-1].time - frames[0].time) * reader.time_base) < 1.1


def test_colours_that_are_not_said_are_those_of_the_size(tmp_path):
    """As players have it: BT.709 from 720 lines on. What is written here without a word is BT.601."""
    green = np.full((720, 64, 3), (30, 200, 60), np.uint8)
    source = make_video(tmp_path / "in.mp4", [green], pixels="yuv420p")
    with av.open(str(source)) as file:
        frame = next(file.decode(video=0))
        as_players_do = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    with Reader(str(source)) as reader:
        found = next(event for event in reader.packets() if isinstance(event, Frame)).pixels
    np.testing.assert_array_equal(found, as_players_do)
    assert abs(int(found[300, 30, 1]) - 200) > 10


def test_sound_that_a_format_cannot_hold_is_refused_before_anything_is_computed(network, tmp_path, monkeypatch):
    source = make_video(tmp_path / "in.mp4", [scene()] * 2, sound=True)
    monkeypatch.setattr(process, "process", lambda *_: pytest.fail("computed"))
    done = convert(network, source, tmp_path / "out.webm")
    assert done.returncode == 1
    assert ".webm does not hold sound as aac" in done.stderr
    assert "give an --output that ends in .mkv, or --nosound" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_what_cannot_be_encoded_is_one_line(tmp_path):
    wide = np.zeros((16, 20000, 3), np.uint8)
    output = tmp_path / "out.mp4"
    with (
        pytest.raises(ValueError, match=r"out\.mp4' cannot be written"),
        Writer(output, (16, 20000), time_base=Fraction(1, 25), rate=Fraction(25)) as out,
    ):
        out.frame(wide, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_sound_ends_with_the_seconds(network, tmp_path):
    source = make_video(tmp_path / "in.mp4", [scene(seed=k) for k in range(25)], sound=True)
    assert convert(network, source, tmp_path / "out.mp4", "--seconds=0.4").returncode == 0
    assert 0.2 < float(max(when for when, _ in sound_of(tmp_path / "out.mp4"))) < 0.4


def test_rotated_as_the_file_says(tmp_path):
    """A telephone held upright stores its picture lying, and the turn beside it."""
    picture = scene(32, 48)
    source = make_video(tmp_path / "in.mp4", [picture] * 2)
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # the matrix of the track's header, version 0
    assert struct.unpack(">9i", data[place : place + 36])[:5] == (65536, 0, 0, 0, 65536)
    data[place : place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # 90 degrees clockwise
    source.write_bytes(data)
    with Reader(str(source)) as reader:
        frames = [event for event in reader.packets() if isinstance(event, Frame)]
    assert frames[0].pixels.shape == (48, 32, 3)
    assert psnr(frames[0].pixels, np.rot90(picture, -1)) > 35


@pytest.mark.parametrize("size", [(33, 49), (48, 49), (33, 64)])
def test_odd_sizes_get_one_more_line(size, tmp_path):
    picture = scene(*size)
    with Writer(tmp_path / "out.mp4", size, time_base=Fraction(1, 25), rate=Fraction(25)) as out:
        for time in range(3):
            out.frame(picture, time)
    _, frames = frames_of(tmp_path / "out.mp4")
    height, width = size
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    assert psnr(frames[0][:height, :width], picture) > 28  # four pixels share a colour


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_colours_are_said_and_stay(suffix, network, tmp_path):
    """Players guess what is not said by the size of a video, and greens shift."""
    green = np.full((48, 64, 3), (30, 200, 60), np.uint8)
    source = make_video(tmp_path / "in.mp4", [green] * 3)
    output = tmp_path / f"out{suffix}"
    assert convert(network, source, output, "--side").returncode == 0
    with av.open(str(output)) as file:
        frame = next(file.decode(video=0))
        said = file.streams.video[0].codec_context
        assert (said.colorspace, said.color_range) == (1, 1)  # BT.709, limited
        found = frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    assert np.abs(found[10:40, 10:50].astype(int) - (30, 200, 60)).max() <= 6


def test_pixels_that_are_not_square_stay_so(network, tmp_path):
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(scene(), format="rgb24")
            frame.pts = index
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert convert(network, source, tmp_path / "out.mp4").returncode == 0
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert file.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


@pytest.mark.parametrize("suffix", [".mov", ".webm"])
def test_transparent_videos(suffix, tmp_path):
    picture = np.dstack([scene(), np.zeros((48, 64), np.uint8)])
    picture[10:30, 20:40, 3] = 255
    path = tmp_path / f"out{suffix}"
    with Writer(path, (48, 64), time_base=Fraction(1, 25), rate=Fraction(25), alpha=True) as out:
        for time in range(3):
            out.frame(picture, time)
    with av.open(str(path)) as file:
        if suffix == ".mov":
            alpha = next(file.decode(video=0)).to_ndarray(format="rgba")[..., 3]
        else:  # the usual decoder of VP9 leaves transparency out
            assert file.streams.video[0].metadata["alpha_mode"] == "1"
            decoder = av.CodecContext.create("libvpx-vp9", "r")
            frames = [frame for packet in file.demux(video=0) for frame in decoder.decode(packet)]
            alpha = frames[0].to_ndarray(format="rgba")[..., 3]
    assert (alpha > 250)[11:29, 21:39].all()
    assert (alpha[:8] < 5).all()


def test_broken_frames_are_named_and_passed(network, tmp_path):
    source = make_video(tmp_path / "in.avi", [scene(seed=k) for k in range(12)], codec="mjpeg", pixels="yuvj444p")
    data = bytearray(source.read_bytes())
    place = data.index(b"\xff\xd8", len(data) // 2)  # the start of a frame in the middle
    data[place : place + 600] = bytes(600)
    source.write_bytes(data)
    done = convert(network, source, tmp_path / "out.mp4")
    assert done.returncode == 0
    assert "is passed over" in done.stderr
    assert "11 frames, 1 frames passed over" in done.stderr
    assert len(frames_of(tmp_path / "out.mp4")[0]) == 11


def test_a_file_that_is_cut_off_gives_what_it_has(network, tmp_path):
    source = make_video(tmp_path / "in.mkv", [scene(seed=k) for k in range(10)])
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    done = convert(network, source, tmp_path / "out.mp4")
    assert done.returncode == 0
    assert 3 <= len(frames_of(tmp_path / "out.mp4")[0]) <= 8


def test_a_camera_is_recorded_until_ctrl_c(network, tmp_path, monkeypatch):
    """A file stands for it, which OpenCV opens alike; after five frames comes Ctrl-C."""
    source = make_video(tmp_path / "in.avi", [scene(seed=k) for k in range(9)], codec="mjpeg", pixels="yuvj444p")
    plain, usual = cv2.VideoCapture, signal.getsignal(signal.SIGINT)

    class Capture:
        def __init__(self, device):
            assert device == 0
            self._file, self._left = plain(str(source)), 5

        def read(self):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGINT)
            return self._file.read()

        def __getattr__(self, name):
            return getattr(self._file, name)

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    done = convert(network, "camera", tmp_path / "out.mp4", "--side", "--show=mask")
    assert done.returncode == 0, done.stderr
    times, frames = frames_of(tmp_path / "out.mp4")
    assert len(times) == 5
    assert signal.getsignal(signal.SIGINT) is usual
    assert all(before < after for before, after in itertools.pairwise(times))
    assert psnr(frames[0][:, :62], scene()[:, :62]) > 26


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--output=out.avi"], "videos end in .mp4"),
        (["--remove=square", "--fill=transparent"], "transparent videos end in .mov, .webm"),
        (["--remove=zebra"], "no class 'zebra'"),
        (["--remove=cell", "--show=mask"], "--show and --classes"),
        (["--remove=cell", "--fill=colour", "--colour=300,0,0"], "give red, green and blue"),
        (["--input=nowhere.mp4"], "there is no video 'nowhere.mp4'"),
        (["--input=README.md"], "no video that can be read"),
        (["--input=/dev/video97"], "there is no camera '/dev/video97'"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(arguments, reason, network, tmp_path):
    source = make_video(tmp_path / "in.mp4", [scene()])
    output = tmp_path / "out" / "out.mp4"
    given = {a.partition("=")[0] for a in arguments}
    base = [f"--checkpoint={network}", f"--input={source}", f"--output={output}"]
    done = command("fcn_jax.video", *(b for b in base if b.partition("=")[0] not in given), *arguments)
    assert done.returncode == 1
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not output.parent.exists()


def test_an_old_video_stays_until_the_new_one_is_whole(network, tmp_path, monkeypatch):
    source = make_video(tmp_path / "in.mp4", [scene(seed=k) for k in range(4)])
    output = tmp_path / "out.mp4"
    output.write_bytes(b"old")

    def fail(self, pixels, time):
        raise ValueError("no more")

    monkeypatch.setattr(Writer, "frame", fail)
    assert convert(network, source, output).returncode == 1
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    monkeypatch.undo()
    assert convert(network, source, output).returncode == 0
    assert len(frames_of(output)[0]) == 4
    assert "is the video that is read" in convert(network, source, source).stderr


def test_seconds_and_side(network, tmp_path):
    source = make_video(tmp_path / "in.mp4", [scene(seed=k) for k in range(10)])  # 25 a second
    assert convert(network, source, tmp_path / "out.mp4", "--seconds=0.2", "--side", "--show=mask").returncode == 0
    times, frames = frames_of(tmp_path / "out.mp4")
    assert len(times) == 5
    assert frames[0].shape == (48, 128, 3)
    assert psnr(frames[0][:, :62], scene()[:, :62]) > 28


# --- what is in it --------------------------------------------------------------------------------------------------


def test_overlays_are_of_the_frames_in_order():
    _, frames = moving(20)
    found = list(process.process(Greens(), iter(frames), options()))
    assert [frame.time for frame in found] == list(range(20))
    for before, after in zip(frames, found, strict=True):
        changed = (before.pixels != after.pixels).any(-1)
        assert (changed == (before.pixels == GREEN).all(-1)).all()


def test_the_background_behind_what_moves_is_what_is_there():
    """And not only near to it: with a camera that stands still, exactly."""
    image, frames = moving(16)
    removed = options(remove=(1,), fill="background", grow=0.02)
    found = list(process.process(Greens(), iter(frames), removed))
    assert [frame.time for frame in found] == list(range(16))
    for frame in found:
        assert (frame.pixels == image).all()
    inpainted = next(iter(process.process(Greens(), iter(frames), removed._replace(fill="inpaint"))))
    assert (inpainted.pixels != image).any()


def test_the_background_is_found_again_when_the_camera_moves():
    wide = scene(60, 140)
    frames = [Frame(with_square(wide[5:53, 2 * k : 2 * k + 64], 18, 4 + 4 * k), k) for k in range(12)]
    removed = options(remove=(1,), fill="background", grow=0.02)
    for frame in process.process(Greens(), iter(frames), removed):
        truth = wide[5:53, 2 * frame.time : 2 * frame.time + 64]
        hole = fill.grown((frames[frame.time].pixels == GREEN).all(-1), 2)
        assert psnr(frame.pixels[hole], truth[hole]) > 26
        assert (frame.pixels[~hole] == frames[frame.time].pixels[~hole]).mean() > 0.99


@pytest.mark.parametrize("speed", [0.1, 0.24, 0.5])
def test_a_slow_pan_is_a_pan(speed):
    """What moves by less than is seen between two frames has moved by pixels after twenty."""
    wide = scene(96, 180)
    frames = []
    for k in range(20):
        shift = np.float32([[1, 0, -speed * k], [0, 1, 0]])
        frames.append(Frame(cv2.warpAffine(wide, shift, (128, 96), flags=cv2.INTER_CUBIC), k))
    shown = [Frame(with_square(frame.pixels, 30, 5 + 5 * frame.time, 14), frame.time) for frame in frames]
    results = list(process.process(Greens(), iter(shown), options(remove=(1,), fill="background", grow=0.01)))
    worst = []
    for truth, frame, spoiled in zip(frames, results, shown, strict=True):
        hole = (spoiled.pixels == GREEN).all(-1)
        worst.append(np.abs(frame.pixels[hole].astype(int) - truth.pixels[hole]).mean())
    assert max(worst) < 3


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (8, 8), (4, 512), (20, 512), (512, 20), (31, 40)])
def test_tiny_frames_are_steady_too(size):
    steady = motion.Steady()
    for seed in range(2):
        found = steady(scene(*size, seed=seed), np.full((*size, 2), 0.5, np.float32))
    np.testing.assert_allclose(found, 0.5)


def test_nothing_is_taken_over_a_cut():
    """After it there is another scene, which must not show in the holes of the first."""
    first, second = np.full((48, 64, 3), 60, np.uint8) + scene() // 4, scene(seed=9)
    frames = [Frame(with_square(first, 18, 20), k) for k in range(6)] + [Frame(second, 6 + k) for k in range(6)]
    results = list(process.process(Greens(), iter(frames), options(remove=(1,), fill="background")))
    for frame in results[:6]:
        assert psnr(frame.pixels, first) > 28  # inpainted from its own surroundings


def test_the_background_holds_few_frames():
    background = motion.Background(reach=4)
    image = scene()
    for k in range(30):
        list(background.add(k, image, np.zeros((48, 64), bool)))
        assert len(background._shots) <= 9
    assert [key for key, _ in background.rest()] == [26, 27, 28, 29]


def test_masks_are_steady_where_nothing_moves_and_follow_what_does():
    rng = np.random.default_rng(0)
    image = scene()
    steady = motion.Steady(0.9)
    plain, smooth = [], []
    for _ in range(20):
        sure = np.clip(0.55 + rng.normal(0, 0.15, (48, 64)), 0, 1).astype(np.float32)
        scores = np.stack([sure, 1 - sure], -1)
        plain.append(scores.argmax(-1))
        smooth.append(steady(image, scores).argmax(-1))
    flicker = [np.mean([np.mean(a != b) for a, b in itertools.pairwise(m[5:])]) for m in (plain, smooth)]
    assert flicker[1] < flicker[0] / 4
    # What moves has its mask where it is, not where it was.
    steady = motion.Steady(0.8)
    wide = scene(48, 120)
    for k in range(10):
        frame = with_square(wide[:, :64], 18, 2 + 4 * k)
        truth = (frame == GREEN).all(-1)
        scores = np.stack([~truth, truth], -1).astype(np.float32)
        found = steady(frame, scores).argmax(-1)
        assert (found & truth).sum() / (found | truth).sum() > 0.75


def test_a_cut_forgets():
    steady = motion.Steady(0.9)
    first = np.zeros((48, 64, 2), np.float32)
    first[..., 0] = 1
    steady(np.full((48, 64, 3), 20, np.uint8), first)
    found = steady(np.full((48, 64, 3), 220, np.uint8), first[..., ::-1].copy())
    assert (found == first[..., ::-1]).all()


def test_scores_stay_probabilities():
    rng = np.random.default_rng(1)
    steady = motion.Steady()
    for k in range(4):
        scores = rng.dirichlet(np.ones(6), (48, 64)).astype(np.float32)
        found = steady(np.roll(scene(), k, 1), scores)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-4)


# --- fills of one image ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", fill.FILLS)
def test_a_fill_changes_the_hole_alone(how):
    image, hole = scene(), np.zeros((48, 64), bool)
    hole[10:20, 30:45] = True
    found = fill.fill(image, hole, how, (1, 2, 3))
    assert (found[~hole][:, :3] == image[~hole]).all()
    if how == "transparent":
        assert ((found[..., 3] == 0) == hole).all()
    else:
        assert (found[hole] != image[hole]).any()
    if how == "colour":
        assert (found[hole] == (1, 2, 3)).all()
    assert (fill.fill(image, ~(hole | ~hole), how)[..., :3] == image).all()


def test_inpainting_continues_what_is_around():
    ramp = np.repeat(np.linspace(40, 200, 1400)[None], 900, 0)
    image = np.repeat(ramp[..., None], 3, 2).astype(np.uint8)
    for shown in (image[:90, :140], image):
        hole = np.zeros(shown.shape[:2], bool)
        hole[30:60, 60:90] = True
        spoiled = np.where(hole[..., None], np.uint8(255), shown)
        assert np.abs(fill.fill(spoiled, hole, "inpaint")[hole].astype(int) - shown[hole]).max() < 12


def test_a_hole_that_is_all():
    image = scene()
    assert fill.fill(image, np.ones((48, 64), bool), "inpaint").shape == image.shape


def test_grown_by_distance():
    hole = np.zeros((9, 9), bool)
    hole[4, 4] = True
    rows, columns = np.indices((9, 9)) - 4
    for pixels in (0, 1, 1.5, 3):
        assert (fill.grown(hole, pixels) == (np.hypot(rows, columns) <= pixels)).all()


def test_another_fill_is_refused():
    with pytest.raises(ValueError, match="choose from inpaint, blur"):
        fill.fill(scene(), np.zeros((48, 64), bool), "magic")

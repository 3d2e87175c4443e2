"""What the page asks for: the page itself, what is in an image, and the image without some of it."""

import asyncio
import base64
import collections
import hashlib
import importlib.resources
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fcn_jax import cli, fill, visualize
from fcn_jax.data import images
from fcn_jax.predictor import Predictor, shrink

LARGEST = 32 * 2**20  # bytes of an image
SHOWN = 1600  # pixels of the longer side of what the page gets
PIXELS = 2**26  # of an image: a small file may hold very many
WAITING = 20  # images that wait; who comes then is asked to come again
_KEPT = 8  # images whose masks are remembered, for fills
_FORBIDDEN = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data: blob:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Seen(NamedTuple):
    """An image uint8 [H, W, 3] and its mask uint8 [H, W]."""

    image: np.ndarray
    mask: np.ndarray


class Refused(Exception):
    """A request that is not answered: with a status of HTTP and a line for the user."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status = status


class Desk:
    """Takes images one after the other: two at once would be slower, and take twice the memory."""

    def __init__(self, network: Predictor):
        self._network = network
        self._pool = ThreadPoolExecutor(1)
        self._kept: collections.OrderedDict[str, Seen] = collections.OrderedDict()
        self.waiting = 0  # with the one that is computed

    @property
    def spec(self) -> Any:
        """Of the network."""
        return self._network.spec

    async def do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """The work, when it is its turn.

        Raises:
          Refused: too many wait.
        """
        if self.waiting >= WAITING:
            raise Refused(503, f"{self.waiting} images are waiting: try again in a minute")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        finally:
            self.waiting -= 1

    def see(self, data: bytes) -> Seen:
        """What is in an image file.

        Raises:
          Refused: it is no image that can be read.
        """
        key = hashlib.sha256(data).hexdigest()
        if key not in self._kept:
            try:
                height, width = images.upright_size(data)
                if height * width > PIXELS:
                    raise Refused(413, f"{width}x{height} pixels: give an image of at most {PIXELS >> 20} million")
                image = shrink(images.decode_image(data, "this file", max_side=SHOWN), SHOWN)
            except (ValueError, OSError, MemoryError) as error:
                raise Refused(415, f"no image that can be read: {' '.join(str(error).split())}") from None
            mask = self._network(image)
            self._kept[key] = Seen(image, mask if mask.ndim == 2 else mask[..., 0])
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def segment(self, data: bytes) -> dict[str, Any]:
        """{width, height, image, ids, mask (addresses that hold pictures), areas (percent of each class)}."""
        seen = self.see(data)
        place = self.spec.outputs[0][1]
        names, palette = self.spec.class_names[place], self.spec.palette[place]
        shares = np.bincount(seen.mask.ravel(), minlength=len(names))[: len(names)] / seen.mask.size
        coloured = io.BytesIO()
        visualize.save_mask(coloured, seen.mask, palette)
        return {
            "height": seen.mask.shape[0],
            "width": seen.mask.shape[1],
            "image": _address(_encoded(seen.image, "jpeg"), "jpeg"),
            "ids": _address(_encoded(seen.mask, "png"), "png"),
            "mask": _address(coloured.getvalue(), "png"),
            "areas": [round(100 * share, 3) for share in shares.tolist()],
        }

    def fill(self, data: bytes, classes: list[int], how: str, grow: float) -> bytes:
        """A PNG of the image without what belongs to the classes.

        Raises:
          Refused: it is no image, or there is no such fill.
        """
        seen = self.see(data)
        hole = fill.grown(np.isin(seen.mask, classes), grow * float(np.hypot(*seen.mask.shape)))
        try:
            return _encoded(fill.fill(seen.image, hole, how), "png")
        except ValueError as error:
            raise Refused(400, str(error)) from None


def _encoded(picture: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=92)
    return buffer.getvalue()


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def app(network: Predictor, title: str, *, hosts: list[str]) -> Starlette:
    """The application.

    Args:
      title: of the page.
      hosts: names by which it may be called; ['*'] for any. Another site cannot reach it under its own name.
    """
    desk = Desk(network)
    page = _page(network, title)

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers=_FORBIDDEN)

    async def queue(_: Request) -> Response:
        return JSONResponse({"waiting": desk.waiting})

    async def segment(request: Request) -> Response:
        return JSONResponse(await desk.do(desk.segment, await _body(request)), headers=_FORBIDDEN)

    async def remove(request: Request) -> Response:
        query = request.query_params
        try:
            classes = [int(value) for value in query.get("classes", "").split(",") if value]
            grow = min(0.2, max(0.0, float(query.get("grow", 1)) / 100))
        except ValueError:
            raise Refused(400, "classes are numbers, such as classes=1,2") from None
        how = query.get("how", "inpaint")
        picture = await desk.do(desk.fill, await _body(request), classes, how, grow)
        return Response(picture, media_type="image/png")

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return JSONResponse({"error": str(error)}, error.status)

    async def fail(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": cli.last_line(error)}, 500)

    return Starlette(
        routes=[
            Route("/", show),
            Route("/queue", queue),
            Route("/segment", segment, methods=["POST"]),
            Route("/fill", remove, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        exception_handlers={Refused: refuse, Exception: fail},
    )


async def _body(request: Request) -> bytes:
    """What was sent, as far as it may be.

    Raises:
      Refused: it is larger than LARGEST, or nothing.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST:
            raise Refused(413, f"larger than {LARGEST >> 20} MB: give a smaller image")
        parts.append(part)
    if not size:
        raise Refused(400, "nothing was sent: give an image")
    return b"".join(parts)


def _page(network: Predictor, title: str) -> str:
    place = network.spec.outputs[0][1]
    facts = {
        "title": title,
        "classes": list(network.spec.class_names[place]),
        "palette": [list(colour) for colour in network.spec.palette[place]],
        "largest": LARGEST,
        "fills": list(fill.FILLS),
    }
    text = importlib.resources.files("fcn_jax.demo").joinpath("page.html").read_text("utf-8")
    return text.replace("@FACTS@", json.dumps(facts).replace("<", "\\u003c"))

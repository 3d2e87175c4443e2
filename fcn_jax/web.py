"""HTML that opens without a network: one document with its style, its scripts and its pictures inside."""

import base64
import html
import io

import numpy as np
from PIL import Image

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 0 } figcaption { font-size: .8rem; word-break: break-all }
.bar { background: #4a78b5; height: .8rem; min-width: 1px }
.square { width: 1rem; height: 1rem; border: 1px solid #999; display: inline-block; vertical-align: middle }
"""


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole document; `title` is text, the others are HTML, CSS and JavaScript."""
    code = f"<script>{script}</script>" if script else ""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{html.escape(title)}</title>"
    return f"<!doctype html><html lang=en>{head}<style>{STYLE}{style}</style>{body}{code}</html>\n"


def embedded(picture: np.ndarray, side: int, *, nearest: bool = False) -> str:
    """The address of a picture uint8 [H, W, 3] that it holds itself, at most `side` pixels a side.

    A JPEG, or with `nearest` a PNG, whose colours stay as they are.
    """
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)
    buffer, kind = io.BytesIO(), "png" if nearest else "jpeg"
    image.save(buffer, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

"""One HTML file: what a model does with given inputs, and what it has learnt."""

import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from modeling import KeelViTForMaskedImageModeling
from pretraining.errors import UserError
from pretraining.files import write_text
from pretraining.publish.explore.image_page import explore_images
from pretraining.publish.explore.pack import fit
from pretraining.publish.explore.text_page import explore_texts
from pretraining.publish.source import Source

LIMIT = 2_000_000  # bytes of a page
HERE = Path(__file__).parent


def facts(source: Source, model: Any) -> list[tuple[str, str]]:
    """What stands at the head of the page."""
    config: Any = source.config
    layers = str(config.num_hidden_layers)
    if source.family == "seq2seq":
        layers = f"{config.encoder_layers} + {config.decoder_layers}"
    return [
        ("model", type(model).__name__),
        ("layers", layers),
        ("heads", str(config.num_attention_heads)),
        ("width", str(config.hidden_size)),
        ("parameters", f"{model.num_parameters():,}"),
    ]


def to_html(content: dict[str, Any]) -> str:
    """The page with its style, its program and its data."""
    # Inside a script no text may look like the script's end.
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {name: (HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    maps = (HERE / "maps.js").read_text(encoding="utf-8")
    pairs = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in content["facts"])
    return Template(parts["html"]).substitute(
        title=escape(content["title"]),
        facts="".join(pairs),
        style=parts["css"],
        script=f"{maps}\n{parts['js']}",
        data=data,
    )


def write_page(source: Source, inputs: list[str], out: Path, mask_ratio: float | None = None) -> Path:
    """Writes the page.

    Args:
        inputs: texts (two with `|||` between them are a pair) or, for a ViT, image files; none: examples of the run's
            data where these come with Python, or else neutral ones.
        mask_ratio: the share that is masked from a model of masked images; None: the run's.

    Raises:
        UserError: the model cannot be opened, an input cannot be read or is too long, or there are too many.
    """
    model = source.open()
    if mask_ratio is not None and not isinstance(model, KeelViTForMaskedImageModeling):
        raise UserError(f"--mask-ratio is for models of masked images, and this is a {type(model).__name__}.")
    content: dict[str, Any] = {"title": source.name, "family": source.family, "facts": facts(source, model)}
    if source.family == "vit":
        explored, weights = explore_images(source, model, inputs, mask_ratio)
    else:
        explored, weights = explore_texts(source, model, inputs)
    content |= explored
    # What remains beside the rest is for attention; a head's scale takes up to 40 bytes, and base64 4 for each 3.
    room = LIMIT - len(to_html(content).encode()) - sum(40 * x.shape[0] * x.shape[1] + 2000 for x in weights)
    fit([each for entry in content["inputs"] for each in entry["maps"]], weights, room * 3 // 4)
    html = to_html(content)
    assert len(html.encode()) < LIMIT
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html)
    return out

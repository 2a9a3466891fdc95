"""The options of the commands, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperCommand

from terramind_cube.modalities import MODALITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terramind_cube.inference.settings import TokenizerWeights as TokenizersChoice

__all__ = [
    "AreaCommand",
    "Batch",
    "Bbox",
    "Chain",
    "Chunks",
    "CloudCover",
    "Datetime",
    "DecodingSteps",
    "Device",
    "Directory",
    "Inputs",
    "LulcLegend",
    "MaxItems",
    "Modalities",
    "Model",
    "Orbit",
    "Out",
    "Outputs",
    "Overlap",
    "Overwrite",
    "Place",
    "Precision",
    "RadarUnit",
    "Resume",
    "Samples",
    "Saved",
    "Seed",
    "Size",
    "Source",
    "Steps",
    "Temperature",
    "Threads",
    "TokenizerWeights",
    "TopP",
    "Weights",
    "parse_bbox",
    "parse_orbit",
    "parse_tokenizers",
]


class AreaCommand(TyperCommand):
    """A command whose ``--bbox`` takes four numbers, quoted as one argument or not.

    And its ``--modalities`` may be followed by several names.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the numbers behind ``--bbox`` into one argument, and split the modalities."""
        if "--bbox" in args:
            begin = end = args.index("--bbox") + 1
            while end < min(begin + 4, len(args)) and _is_number(args[end]):
                end += 1
            if end > begin:
                args = [*args[:begin], " ".join(args[begin:end]), *args[end:]]
        return super().parse_args(ctx, _repeated("--modalities", args))


def _option(
    text: str, panel: str | None = None, metavar: str | None = None, least: int | None = None
) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, metavar=metavar, min=least)


_READ, _MODEL, _WORK = "What to read", "How to generate", "How to compute"
Size = Annotated[int, _option("Side of the scene in pixels of 10 m.", None, "PX", 16)]
Place = Annotated[int, _option("Which place; 900000 and more are never trained on.", None, "N", 0)]
Directory = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to write.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="CATALOG",
        help="Path of a catalog or of items, URL of a STAC API, or earth-search, "
        "planetary-computer, cdse.",
    ),
]
Out = Annotated[Path, _option("Zarr store to write.", None, "STORE")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an unfinished store; new if there is none.")
]
Bbox = Annotated[str | None, _option("Area in degrees; all by default.", _READ, "W S E N")]
Datetime = Annotated[
    str | None, _option("Such as 2024-05 or 2024-05-01/2024-06-30; all by default.", _READ, "TIME")
]
Saved = Annotated[
    Path, typer.Argument(metavar="OUT", help="File to write: .parquet (stac-geoparquet) or .json.")
]
Modalities = Annotated[
    list[str] | None,
    _option("Modalities to search; S2L2A, S1RTC, DEM and LULC by default.", _READ, "M"),
]
CloudCover = Annotated[
    float | None, _option("Largest cloud cover of optical scenes, in percent.", _READ, "PERCENT")
]
Orbit = Annotated[
    str | None, _option("Of radar: ascending, descending or a relative orbit.", _READ, "ORBIT")
]
MaxItems = Annotated[int | None, _option("Most items of a collection.", _READ, "N", 1)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]
Inputs = Annotated[
    list[str] | None, _option("Modality to look at; may be repeated. S2L2A by default.", _READ, "M")
]
RadarUnit = Annotated[
    str | None,
    _option("Of radar items that tell none: dB, linear or amplitude.", _READ, "UNIT"),
]
LulcLegend = Annotated[
    str | None,
    _option(
        "Of land cover that tells none: impact-observatory, esa-worldcover, ...", _READ, "NAME"
    ),
]
Outputs = Annotated[
    list[str] | None,
    _option("Modality to generate; may be repeated. LULC by default.", _MODEL, "M"),
]
Model = Annotated[str, _option("terramind_nano, terramind_v1_tiny, ...", _MODEL)]
Weights = Annotated[
    str | None, _option('"pretrained" or a path; untrained by default.', _MODEL, "PATH")
]
TokenizerWeights = Annotated[
    list[str] | None,
    _option(
        "Tokenizer of an output, M=PATH, may be repeated; or pretrained or untrained for all of "
        "them. With pretrained --weights pretrained by default.",
        _MODEL,
        "M=PATH",
    ),
]
Seed = Annotated[int, _option("Of the random numbers.", _MODEL, "N")]
Temperature = Annotated[float, _option("0 takes the most probable token.", _MODEL)]
TopP = Annotated[float, _option("Share of the probability that is drawn from.", _MODEL)]
Steps = Annotated[int, _option("Diffusion steps.", _MODEL, "N")]
DecodingSteps = Annotated[int, _option("Steps in which tokens are decided.", _MODEL, "N")]
Chain = Annotated[
    bool, typer.Option("--chain", help="Each output sees those before it.", rich_help_panel=_MODEL)
]
Samples = Annotated[int, _option("Members of an ensemble.", _MODEL, "N")]
Overlap = Annotated[int, _option("Overlap of neighbouring tiles.", _MODEL, "PX")]
Chunks = Annotated[int, _option("Side of the store's chunks.", _WORK, "PX")]
Precision = Annotated[str, _option("float32, bfloat16 or auto.", _WORK)]
Device = Annotated[str | None, _option("cpu or cuda; the GPU where there is one.", _WORK)]
Batch = Annotated[int | None, _option("Tiles per forward pass.", _WORK, "N")]
Threads = Annotated[int | None, _option("Threads inside an operation.", _WORK, "N")]


def _repeated(option: str, args: list[str]) -> list[str]:
    """Repeat an option before every modality that follows it."""
    done: list[str] = []
    is_list = False
    for arg in args:
        is_next = bool(done) and done[-1] == option
        if is_list and not is_next and arg in MODALITIES:
            done.append(option)
        is_list = arg == option or is_next or (is_list and arg in MODALITIES)
        done.append(arg)
    return done


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_bbox(text: str | None) -> list[float] | None:
    """Read four numbers, between blanks or commas."""
    if text is None:
        return None
    words = text.replace(",", " ").split()
    if len(words) != 4 or not all(map(_is_number, words)):
        raise ValueError(f"--bbox takes four numbers, W S E N in degrees, got {text!r}.")
    return [float(word) for word in words]


def parse_orbit(text: str | None) -> str | int | None:
    """Read a direction, or the number of a relative orbit."""
    return int(text) if text is not None and text.isdecimal() else text


def parse_tokenizers(texts: Sequence[str] | None) -> TokenizersChoice | None:
    """Read ``M=PATH`` pairs, or one word for all tokenizers."""
    if texts and len(texts) == 1 and texts[0] in ("pretrained", "untrained"):
        return cast("TokenizersChoice", texts[0])
    found = {}
    for text in texts or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(
                "--tokenizer-weights takes M=PATH, such as LULC=l.pt, or one word for all, "
                f"pretrained or untrained, got {text!r}."
            )
        found[name] = path
    return found or None

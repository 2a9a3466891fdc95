"""Commands about catalogs: keeping what a search found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from terramind_cube.cli import options
from terramind_cube.cli.terminal import make_console, print_rows, reporting, status

if TYPE_CHECKING:
    from terramind_cube.stac import SearchResult

__all__ = ["index"]

_DEFAULT_MODALITIES = ("S2L2A", "S1RTC", "DEM", "LULC")


@reporting
def index(  # noqa: PLR0913  # the public surface
    catalog: options.Source,
    out: options.Saved,
    bbox: options.Bbox = None,
    datetime: options.Datetime = None,
    modalities: options.Modalities = None,
    cloud_cover: options.CloudCover = None,
    orbit: options.Orbit = None,
    max_items: options.MaxItems = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Search a catalog and keep what is found as a file, which opens without the server.

    That makes a study repeatable: OUT takes the place of CATALOG. Rasters stay where they are.
    """
    area, orbit_asked = options.parse_bbox(bbox), options.parse_orbit(orbit)
    console = make_console()
    with status(console, "Loading the libraries"):
        from terramind_cube.stac import open_catalog
        from terramind_cube.stac.result import check_target
    check_target(out, overwrite=overwrite)
    with status(console, "Searching the catalog"):
        source = open_catalog(catalog)
        if source.collection_ids is not None and area is None and max_items is None:
            raise ValueError(
                f"{source.name} holds millions of items, maybe: give --bbox W S E N or --max-items."
            )
        found = source.search(
            modalities=modalities or _DEFAULT_MODALITIES,
            bbox=area,
            datetime=datetime,
            cloud_cover=cloud_cover,
            orbit=orbit_asked,
            max_items=max_items,
        )
    if not found:
        raise ValueError(f"Nothing is found: {source.describe()}.")
    print_rows(console, _describe(found))
    path = found.save(out, overwrite=overwrite)
    console.print(f"\nSaved {len(found)} item{'s' * (len(found) > 1)}: {path}")
    where = "" if area is None else f"bbox={tuple(area)}, "
    console.print(f'  Python      tc.load_cube("{path}", {where}modalities={_held(found)})')
    if "S2L2A" in _held(found):
        box = "" if area is None else f"--bbox {' '.join(map(str, area))} "
        console.print(f"  Next        terramind-cube generate {path} {box}--out lulc.zarr")


def _describe(found: SearchResult) -> list[tuple[str, str]]:
    from terramind_cube.stac.summary import count_items

    rows = [(row.name, f"{row.total:>5}  {row.when}".rstrip()) for row in count_items(found)]
    return [*rows, *([("Missing", ", ".join(found.missing))] if found.missing else [])]


def _held(found: SearchResult) -> list[str]:
    return [name for name, items in found.by_modality.items() if items]

"""``cube.terramind``: the model's work on a Dataset, each method one call into a room above.

The accessor keeps no state: xarray makes a new one for every copy of a Dataset. The rooms are
imported by the methods, so that `import terramind_cube` costs little more than xarray.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from matplotlib.figure import Figure

    from terramind_cube.model.loading import Precision
    from terramind_cube.store.ledger import Receipt

__all__ = ["TerraMindAccessor"]


@xr.register_dataset_accessor("terramind")
class TerraMindAccessor:
    """TerraMind on a cube.

    Parameters
    ----------
    cube : xarray.Dataset
        One projected 10 m grid with a variable per modality; see `terramind_cube.load_cube`.
    """

    def __init__(self, cube: xr.Dataset) -> None:
        self._cube = cube

    def generate(  # noqa: PLR0913  # the public surface
        self,
        outputs: Sequence[str],
        *,
        inputs: Sequence[str] | None = None,
        model: str = "terramind_nano",
        weights: str | PathLike[str] | None = None,
        tokenizer_weights: Mapping[str, str | PathLike[str]] | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 0.8,
        top_k: int = 0,
        steps: int = 10,
        overlap: int = 32,
        chunks: int | Mapping[str, int] | None = None,
        precision: Precision = "float32",
        device: str | None = None,
        compute_batch: int | None = None,
        threads: int | None = None,
    ) -> xr.Dataset:
        """Generate modalities from the cube.

        Parameters
        ----------
        outputs : sequence of str
            Modalities to generate; this version decodes ``"LULC"``.
        inputs : sequence of str, optional
            Modalities to look at; by default every one of the cube whose pixels TerraMind takes.
        model : str
            See `terramind_cube.load_model`.
        weights : path or "pretrained", optional
            The model's weights; None gives fixed, untrained ones.
        tokenizer_weights : mapping of str to path or "pretrained", optional
            Weights of the outputs' tokenizers, by modality.
        seed : int
            Chooses the random numbers of every world cell.
        temperature, top_p, top_k
            How tokens are drawn; temperature 0 takes the most probable one.
        steps : int
            Diffusion steps of outputs that are decoded by diffusion; LULC is not.
        overlap : int
            Overlap of neighbouring tiles in pixels, a multiple of the model's patch.
        chunks : int or mapping, optional
            Side of the result's chunks in pixels, 896 by default.
        precision : {"float32", "bfloat16", "auto"}
            "auto" takes bfloat16 where the device computes it natively.
        device : str, optional
            "cpu" or "cuda"; by default the GPU where there is one.
        compute_batch : int, optional
            Tiles per forward pass, a constant of the run.
        threads : int, optional
            Threads inside an operation, a constant of the run; by default torch's of this process.

        Returns
        -------
        xarray.Dataset
            Lazy, on the cube's grid: ``LULC`` (time, y, x) uint8 with CF flags and
            ``LULC_confidence`` float32, the probability of the class. Where no input is valid they
            are 0 and NaN; class 0 with a confidence is the model's own "no data".

        Raises
        ------
        ValueError, FileNotFoundError
            If cube, names, weights or numbers do not fit; nothing has been computed then.
        """
        from terramind_cube.cube.layout import read_layout
        from terramind_cube.inference.mapping import map_generation
        from terramind_cube.inference.plan import Options, check_chunk, plan_generation
        from terramind_cube.inference.runtime import Compute
        from terramind_cube.model.generation import Sampling

        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}.")
        options = Options(
            model=model,
            weights=weights,
            tokenizer_weights=tokenizer_weights,
            seed=seed,
            sampling=Sampling(temperature, top_p, top_k),
            overlap_px=overlap,
            chunk_px=check_chunk(chunks),
            compute=Compute.choose(device, precision, compute_batch, threads),
        )
        layout = read_layout(self._cube, inputs)
        return map_generation(layout, plan_generation(layout, outputs, options))

    def write(  # noqa: PLR0913  # the public surface
        self,
        path: str | PathLike[str],
        outputs: Sequence[str],
        *,
        resume: bool = False,
        progress: Callable[[int, int, Receipt], None] | None = None,
        inputs: Sequence[str] | None = None,
        model: str = "terramind_nano",
        weights: str | PathLike[str] | None = None,
        tokenizer_weights: Mapping[str, str | PathLike[str]] | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 0.8,
        top_k: int = 0,
        steps: int = 10,
        overlap: int = 32,
        chunks: int | Mapping[str, int] | None = None,
        precision: Precision = "float32",
        device: str | None = None,
        compute_batch: int | None = None,
        threads: int | None = None,
    ) -> Path:
        """Generate modalities straight into a Zarr store, group by group.

        Memory does not grow with the area, and a run that was killed goes on with
        ``resume=True``. The other parameters are those of `generate`.

        Parameters
        ----------
        path : path
            Of the new store.
        outputs : sequence of str
            Modalities to generate.
        resume : bool
            Go on with an unfinished store of the same request; start anew where there is none.
        progress : callable, optional
            Called as ``progress(done, total, receipt)`` after each group.

        Returns
        -------
        pathlib.Path
            Of the store; open it with ``xr.open_zarr(path)``.

        Raises
        ------
        FileExistsError
            If the path exists and `resume` is False.
        ValueError
            If the store there is of another request.
        """
        from terramind_cube.inference.mapping import generated_regions, read_fingerprint
        from terramind_cube.store.writer import write_result

        result = self.generate(
            outputs,
            inputs=inputs,
            model=model,
            weights=weights,
            tokenizer_weights=tokenizer_weights,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            steps=steps,
            overlap=overlap,
            chunks=chunks,
            precision=precision,
            device=device,
            compute_batch=compute_batch,
            threads=threads,
        )
        return write_result(
            result,
            Path(path),
            regions=generated_regions(result),
            fingerprint=read_fingerprint(result),
            resume=resume,
            progress=progress,
        )

    def plot(self, result: xr.Dataset | None = None, *, time: int = 0) -> Figure:
        """Draw one date of the cube: true colour, land cover, confidence, whatever is there.

        Parameters
        ----------
        result : xarray.Dataset, optional
            What was generated from the cube; the cube's own LULC is then shown as the truth.
        time : int
            Position along time.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            If there is nothing to draw.
        """
        from terramind_cube.display import quicklook

        return quicklook(self._cube, result, time=time)

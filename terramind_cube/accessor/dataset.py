"""``cube.terramind``: the model's work on a Dataset, each method one call into a room above.

The accessor keeps no state: xarray makes a new one for every copy of a Dataset. The rooms are
imported by the methods, so that `import terramind_cube` costs little more than xarray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import xarray as xr

from terramind_cube.accessor.features import FeatureView

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike
    from pathlib import Path
    from typing import Unpack

    from terramind_cube.inference.settings import GenerateSettings, TokenizerWeights, Weights
    from terramind_cube.model.diffusion import Sampler
    from terramind_cube.model.loading import Precision
    from terramind_cube.model.tokenizers import Clamp
    from terramind_cube.store.ledger import Receipt

__all__ = ["TerraMindAccessor"]


@xr.register_dataset_accessor("terramind")
class TerraMindAccessor(FeatureView):
    """TerraMind on a cube.

    Parameters
    ----------
    cube : xarray.Dataset
        One projected 10 m grid with a variable per modality, see `terramind_cube.load_cube`; or,
        for Sentinel-2, one per band, see `terramind_cube.cube.read_layout`.
    """

    def generate(  # noqa: PLR0913  # the public surface
        self,
        outputs: Sequence[str],
        *,
        inputs: Sequence[str] | Mapping[str, str] | None = None,
        model: str = "terramind_nano",
        weights: Weights | None = None,
        tokenizer_weights: TokenizerWeights | None = None,
        vocabularies: Mapping[str, Weights] | None = None,
        seed: int = 0,
        n_samples: int = 1,
        keep_samples: bool = False,
        chain: bool = False,
        think: Sequence[str] = (),
        temperature: float = 1.0,
        top_p: float = 0.8,
        top_k: int = 0,
        decoding_steps: int = 1,
        scheme: Literal["roar", "maskgit"] = "roar",
        schedule: Literal["cosine", "linear"] = "cosine",
        temperature_schedule: str = "constant",
        guidance: float | Mapping[str, float] | None = None,
        soft: bool = False,
        steps: int = 10,
        sampler: Sampler = "dpm++",
        clamp: Clamp | None = "physical",
        bands: Mapping[str, Sequence[str]] | None = None,
        caption: str | None = None,
        candidates: int = 5,
        token_confidence: bool | None = None,
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
            Modalities to generate, in this order: ``"S2L2A"``, ``"S1GRD"``, ``"S1RTC"``, ``"DEM"``,
            ``"LULC"``, ``"NDVI"``, ``"Coordinates"``, ``"Captions"``.
        inputs : sequence of str, or mapping of str to {"pixels", "tokens"}, optional
            Modalities to look at; by default every one of the cube whose pixels TerraMind takes and
            that is not generated. A mapping chooses for each whether the model sees its pixels or
            its tokens; LULC and NDVI are always tokens. ``"Coordinates"``, beside a raster, shows
            the model where each tile lies.
        model : str
            See `terramind_cube.load_model`.
        weights : path or "pretrained", optional
            The model's weights; None gives fixed, untrained ones.
        tokenizer_weights : "pretrained", "untrained", or mapping of str to path, optional
            Weights of the tokenizers of outputs and of inputs that are seen as tokens: the released
            ones for all of them, or a path (or one of the words) for each. With
            ``weights="pretrained"`` they are the released ones by default; beside other weights an
            untrained tokenizer must be asked for, since it decodes by random numbers.
        vocabularies : mapping of str to path, optional
            Vocabulary files of ``"Coordinates"`` (by default a bundled one) and ``"Captions"``.
        seed : int
            Chooses the random numbers of every world cell.
        n_samples : int
            Members of an ensemble. With more than one, continuous outputs are their mean, with
            ``X_std`` beside it; land cover is the most probable class on average, with
            ``LULC_probability`` and ``LULC_entropy``.
        keep_samples : bool
            Whether each member is returned too, as ``X_samples``.
        chain : bool
            Whether each generated modality is an input of the next one.
        think : sequence of str
            Modalities whose tokens are generated first and looked at, but never decoded
            (Thinking-in-Modalities, arXiv 2504.11171).
        temperature, top_p, top_k
            How tokens are drawn; temperature 0 takes the most probable one.
        decoding_steps : int
            Steps in which the tokens of an output are decided; from the second on they see those
            decided before.
        scheme : {"roar", "maskgit"}
            Whether a step decides a random part of the rest, or the most confident part.
        schedule : {"cosine", "linear"}
            Whether steps grow, or are equally large.
        temperature_schedule : str
            ``"constant"``, ``"linear"`` or ``"onex:MIN:POWER"``.
        guidance : float, or mapping of str to float, optional
            Classifier-free guidance: one weight for all inputs, or one for each that is named;
            1 is the model itself, more exaggerates what an input says.
        soft : bool
            Whether continuous outputs are decoded from the expected code of each token in place of
            the drawn one: closer to the mean, with less texture. It does not concern LULC.
        steps : int
            Evaluations of the denoiser, for outputs that are decoded by diffusion.
        sampler : {"dpm++", "ddim"}
            DPM-Solver++(2M), or the released DDIM; 10 steps of the first are as good as 50 of the
            other.
        clamp : {"physical", "released"} or None
            Bounds of every predicted image: the modality's valid range, the released models' one
            standard deviation around the mean (which cuts elevation at 1622 m), or none.
        bands : mapping of str to sequence of str, optional
            Bands to look at, by modality; the others count as their mean.
        caption : str, optional
            Text that the model looks at; for models that know captions. With ``"Captions"`` among
            the inputs and no text here, the cube's coordinate ``caption`` is read, of one text or
            of one for each date.
        candidates : int
            Cells in the result of ``"Coordinates"``.
        token_confidence : bool, optional
            Whether ``X_token_confidence`` stands beside each output; by default wherever `chunks`
            is a multiple of the model's patch.
        overlap : int
            Overlap of neighbouring tiles in pixels, a multiple of the model's patch.
        chunks : int or mapping, optional
            Side of the result's chunks in pixels, 896 by default.
        precision : {"float32", "bfloat16", "auto"}
            "auto" takes bfloat16 where the device computes it natively.
        device : str, optional
            "cpu" or "cuda"; by default the GPU where there is one.
        compute_batch : int, optional
            Tiles per forward pass, a constant of the run; by default the largest one that a trial
            finds to fit a GPU, and 2 on a CPU.
        threads : int, optional
            Threads inside an operation, a constant of the run; by default torch's of this process.

        Returns
        -------
        xarray.Dataset
            Lazy, on the cube's grid. Rasters ``X`` (time, [X_band,] y, x) in the units and dtypes
            of a cube; where no input is valid they are nodata. ``LULC_confidence`` is the
            probability of the class; class 0 with a confidence is the model's own "no data".
            ``X_token_confidence`` (time, token_y, token_x) is the probability of the drawn tokens.
            ``Coordinates`` (time, tile_y, tile_x, candidate) is the probability of the most likely
            quarter-degree cells, whose ``Coordinates_latitude`` and ``_longitude`` stand beside it;
            of an ensemble, sequences are those of its first member.

        Raises
        ------
        ValueError, FileNotFoundError
            If cube, names, weights or numbers do not fit; nothing has been computed then.
        """
        from terramind_cube import inference as room

        sampling = room.Sampling(temperature, top_p, top_k)
        cube = self._cube
        layers, forms, sequences = room.read_inputs(cube, inputs, caption)
        options = room.Options(
            room.WeightsChoice(model, weights, tokenizer_weights, vocabularies),
            room.Compute.choose(device, precision, compute_batch, threads),
            forms,
            sequences,
            seed,
            room.Decoding(sampling, decoding_steps, scheme, schedule, temperature_schedule, soft),
            room.Diffusion(steps, sampler, clamp),
            room.Ensemble(n_samples, keep_samples),
            guidance,
            chain,
            think,
            token_confidence,
            candidates,
            overlap,
            room.check_chunk(chunks),
        )
        names = room.check_outputs(outputs)
        layout = room.read_layout(cube, layers, bands=bands, besides=names)
        return room.map_plan(layout, room.plan_generation(layout, names, options))

    def write(
        self,
        path: str | PathLike[str],
        outputs: Sequence[str],
        *,
        resume: bool | Literal["same-pixels"] = False,
        progress: bool | Literal["auto"] | Callable[[int, int, Receipt], None] | None = "auto",
        **settings: Unpack[GenerateSettings],
    ) -> Path:
        """Generate modalities straight into a Zarr store, group by group, in bounded memory.

        Parameters
        ----------
        path : path
            Of the new store: a local one, or a ``file://`` URL.
        outputs : sequence of str
            Modalities to generate.
        resume : bool or "same-pixels"
            Go on with an unfinished store of the same request; start anew where there is none. The
            pixels of the inputs are known by their dask names, or in memory by their content; with
            "same-pixels" you vouch for them, as for a cube in other chunks.
        progress : bool, "auto" or callable, optional
            Show how far it is: by default on a terminal and in Jupyter; True anywhere; False or
            None never. A function is called as ``progress(done, total, receipt)`` after each group.
        **settings
            The keyword arguments of `generate`.

        Returns
        -------
        pathlib.Path
            Of the store; open it with ``xr.open_zarr(path)``.

        Raises
        ------
        FileExistsError
            If the path exists and `resume` is False.
        ValueError
            If the store there is of another request or of other pixels, or `path` is the URL of
            another place.
        BlockingIOError
            If another process is writing there.
        """
        from terramind_cube import inference as room
        from terramind_cube.display.progress import check_progress, following
        from terramind_cube.store.ledger import completed, stored_batch
        from terramind_cube.store.places import store_path
        from terramind_cube.store.writer import write_result

        if resume and settings.get("compute_batch") is None:
            settings["compute_batch"] = stored_batch(path)
        target, show = store_path(path), check_progress(progress)
        result = self.generate(outputs, **settings)
        regions = room.generated_regions(result)
        with following(show, len(regions), len(completed(target)) if resume else 0) as report:
            return write_result(
                result,
                target,
                regions=regions,
                fingerprint=room.read_fingerprint(result),
                resume=resume,
                progress=report,
            )

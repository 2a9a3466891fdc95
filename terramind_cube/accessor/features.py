"""``cube.terramind`` beside generation: features, standardised pixels, tokens, reconstructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from terramind_cube.accessor.view import CubeView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr

    from terramind_cube.inference.settings import TokenizerWeights, Weights
    from terramind_cube.modalities import Statistics
    from terramind_cube.model.diffusion import Sampler
    from terramind_cube.model.loading import Precision
    from terramind_cube.model.tokenizers import Clamp

__all__ = ["FeatureView"]


class FeatureView(CubeView):
    """What the encoder and the tokenizers make of a cube."""

    def embed(  # noqa: PLR0913  # the public surface
        self,
        *,
        inputs: Sequence[str] | Mapping[str, str] | None = None,
        model: str = "terramind_nano",
        weights: Weights | None = None,
        tokenizer_weights: TokenizerWeights | None = None,
        vocabularies: Mapping[str, Weights] | None = None,
        layers: Sequence[int] | Literal["all"] | None = None,
        merge: Literal["mean", "max", "concat"] | None = "mean",
        bands: Mapping[str, Sequence[str]] | None = None,
        new_modalities: Mapping[str, Statistics] | None = None,
        think: Sequence[str] = (),
        caption: str | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 0.8,
        top_k: int = 0,
        chunks: int | Mapping[str, int] | None = None,
        precision: Precision = "float32",
        device: str | None = None,
        compute_batch: int | None = None,
        threads: int | None = None,
    ) -> xr.DataArray:
        """Return the features of TerraMind's encoder on its token grid.

        Parameters
        ----------
        layers : sequence of int, or "all", optional
            Encoder blocks, from 0; the last one is normalised. By default the last one alone.
        merge : {"mean", "max", "concat"} or None
            How the features of several modalities become one vector per cell; None keeps them
            apart along ``modality``. Coordinates and captions are looked at but not merged.
        bands : mapping of str to sequence of str, optional
            Bands to look at, by modality; the others count as their mean.
        new_modalities : mapping of str to terramind_cube.modalities.Statistics, optional
            Variables of the cube that TerraMind does not know, with mean and standard deviation
            per band: they get fresh, untrained patch embeddings.
        think : sequence of str
            Modalities whose tokens are generated first and looked at as further modalities
            (Thinking-in-Modalities); `seed`, `temperature`, `top_p` and `top_k` draw them.
        inputs, model, weights, tokenizer_weights, ...
            As in `generate`.

        Returns
        -------
        xarray.DataArray
            Lazy, float32, (time, [layer,] [modality,] token_y, token_x, feature), with the centres
            of the token cells as coordinates; NaN where no input is valid. Tiles do not overlap.
            Errors are those of `generate`.
        """
        from terramind_cube import inference as room

        cube = self._cube
        names, forms, sequences = room.read_inputs(cube, inputs, caption)
        extensions = tuple((new_modalities or {}).items())
        options = room.EmbedOptions(
            room.WeightsChoice(model, weights, tokenizer_weights, vocabularies, extensions),
            room.Compute.choose(device, precision, compute_batch, threads),
            forms,
            sequences,
            layers,
            merge,
            think,
            room.Decoding(room.Sampling(temperature, top_p, top_k)),
            seed,
            room.check_chunk(chunks),
        )
        layout = room.read_layout(cube, names, bands=bands, further=new_modalities)
        return room.map_plan(layout, room.plan_embedding(layout, options))[room.EMBEDDING]

    def normalize(
        self,
        modalities: Sequence[str] | None = None,
        *,
        model: str = "terramind_nano",
        weights: Weights | None = None,
        dtype: Literal["float32"] = "float32",
        bands: Mapping[str, Sequence[str]] | None = None,
    ) -> xr.Dataset:
        """Return the pixels of the cube as the model sees them: standardised, nodata 0.

        Parameters
        ----------
        modalities : sequence of str, optional
            Continuous rasters of the cube; by default every one whose pixels TerraMind takes.
        model, weights, bands
            Whose means and standard deviations to take, and which bands of a modality.
        dtype : "float32"
            Datasets hold no bfloat16; `terramind_cube.kernels.normalize` gives tensors of it.

        Returns
        -------
        xarray.Dataset
            float32 ``(x - mean) / std`` on the cube's coordinates; 0, the mean, in every band where
            any is nodata or not finite. Of a lazy cube lazy, in its chunks but with all bands in
            one, on their device; of one in memory, in memory. Errors are those of `generate`.
        """
        from terramind_cube import inference as room
        from terramind_cube.inference.standardize import check_standardized, standardize_layers

        names, cube = check_standardized(modalities, dtype), self._cube
        layout = room.read_layout(cube, names, bands=bands)
        return standardize_layers(layout, room.WeightsChoice(model, weights), cube)

    def tokenize(  # noqa: PLR0913  # the public surface
        self,
        modalities: Sequence[str],
        *,
        model: str = "terramind_nano",
        weights: Weights | None = None,
        tokenizer_weights: TokenizerWeights | None = None,
        chunks: int | Mapping[str, int] | None = None,
        precision: Precision = "float32",
        device: str | None = None,
        compute_batch: int | None = None,
        threads: int | None = None,
    ) -> xr.Dataset:
        """Return the token ids of modalities of the cube.

        Parameters
        ----------
        modalities : sequence of str
            Rasters that have a tokenizer.
        model, weights
            Whose tokenizers, tiles and statistics to take.
        tokenizer_weights, chunks, precision, device, compute_batch, threads
            As in `generate`.

        Returns
        -------
        xarray.Dataset
            Lazy ``X_tokens`` (time, token_y, token_x), int32, -1 where the modality has no valid
            pixel. Tiles do not overlap.
            Errors are those of `generate`.
        """
        from terramind_cube import inference as room

        layout = room.read_layout(self._cube, room.check_outputs(modalities, "modalities"))
        choice = room.WeightsChoice(model, weights, tokenizer_weights)
        compute = room.Compute.choose(device, precision, compute_batch, threads)
        return room.map_plan(
            layout, room.plan_tokenization(layout, choice, compute, room.check_chunk(chunks))
        )

    def reconstruct(  # noqa: PLR0913  # the public surface
        self,
        modalities: Sequence[str],
        *,
        model: str = "terramind_nano",
        weights: Weights | None = None,
        tokenizer_weights: TokenizerWeights | None = None,
        seed: int = 0,
        steps: int = 10,
        sampler: Sampler = "dpm++",
        clamp: Clamp | None = "physical",
        overlap: int = 32,
        chunks: int | Mapping[str, int] | None = None,
        precision: Precision = "float32",
        device: str | None = None,
        compute_batch: int | None = None,
        threads: int | None = None,
    ) -> xr.Dataset:
        """Tokenize modalities of the cube and decode them again, to judge a tokenizer.

        Parameters
        ----------
        modalities : sequence of str
            Rasters that have a tokenizer.
        model, weights
            Whose tokenizers, tiles and statistics to take.
        tokenizer_weights, seed, steps, sampler, clamp, ...
            As in `generate`.

        Returns
        -------
        xarray.Dataset
            Lazy, the modalities under their own names; each is nodata where it was.
            Errors are those of `generate`.
        """
        from terramind_cube import inference as room

        how = room.Diffusion(steps, sampler, clamp)
        layout = room.read_layout(self._cube, room.check_outputs(modalities, "modalities"))
        plan = room.plan_reconstruction(
            layout,
            room.WeightsChoice(model, weights, tokenizer_weights),
            room.Compute.choose(device, precision, compute_batch, threads),
            how,
            (overlap, room.check_chunk(chunks)),
            seed,
        )
        return room.map_plan(layout, plan)

"""Plan a request over a cube and map it lazily over tile groups.

The names here are what the accessor and the command line put a request together from.
"""

from __future__ import annotations

from terramind_cube.cube.layout import read_layout
from terramind_cube.inference.choice import WeightsChoice
from terramind_cube.inference.features import (
    EMBEDDING,
    EmbedOptions,
    plan_embedding,
    plan_reconstruction,
    plan_tokenization,
)
from terramind_cube.inference.generate import Diffusion, Options, plan_generation
from terramind_cube.inference.mapping import generated_regions, map_plan, read_fingerprint
from terramind_cube.inference.plan import check_chunk, check_outputs
from terramind_cube.inference.runtime import Compute
from terramind_cube.inference.sequences import read_inputs
from terramind_cube.inference.variables import Ensemble
from terramind_cube.model.decoding import Decoding
from terramind_cube.model.generation import Sampling

__all__ = [
    "EMBEDDING",
    "Compute",
    "Decoding",
    "Diffusion",
    "EmbedOptions",
    "Ensemble",
    "Options",
    "Sampling",
    "WeightsChoice",
    "check_chunk",
    "check_outputs",
    "generated_regions",
    "map_plan",
    "plan_embedding",
    "plan_generation",
    "plan_reconstruction",
    "plan_tokenization",
    "read_fingerprint",
    "read_inputs",
    "read_layout",
]

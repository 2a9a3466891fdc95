"""TerraMind in PyTorch: the transformer, the tokenizers, their weights and sampling."""

from __future__ import annotations

from terramind_cube.model.loading import extend_model, load_model, load_tokenizer

__all__ = ["extend_model", "load_model", "load_tokenizer"]

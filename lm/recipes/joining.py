"""What recipes check of how a model's decoder reads its encoder (`lm.config.bottleneck`)."""

from typing import Any

from jax.sharding import Mesh

from lm import config
from lm.errors import UserError


def check_mesh(model: config.Model, mesh: Mesh) -> None:
    """UserError if the mesh cuts rows whose length a prefix changes."""
    if model.join == "prefix" and (parts := mesh.shape["sequence"]) > 1:
        raise UserError(
            f"model.join=prefix puts vectors before the tokens of a row, which mesh.sequence={parts} then does not divide: set "
            "mesh.sequence=1, or join=cross"
        )


def check_documents(model: config.Model, rows: dict[str, Any]) -> None:
    """UserError if a row, of any split, may hold more documents than the bottleneck has vectors for."""
    b = model.bottleneck
    if b is None:
        return
    most = max((getattr(each, "documents", 1) for each in rows.values()), default=1)
    if most > b.documents:
        raise UserError(
            f"rows have up to {most} documents, and the bottleneck has vectors for {b.documents}: set "
            f"--config.model.bottleneck.documents={most}, or shorten the rows"
        )

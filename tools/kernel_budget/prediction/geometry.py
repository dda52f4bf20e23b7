"""Divides a call into blocks, with the numbers of csrc/iteration and csrc/cuda/select.cuh."""

from __future__ import annotations

import dataclasses

TILE = 2048  # kTile: elements of a tile before tiles are merged
ENOUGH_BLOCKS = 2048  # VAE_FUSED_ENOUGH_BLOCKS: with more blocks, tiles are merged
TILES_OF_BLOCK = 4  # kTilesOfBlock: the most tiles of a block

# The number of tensors read and written, which is the bytes per element over the dtype's size.
STREAMS = {"forward": (2, 1), "backward": (3, 2)}
ELEMENT_BYTES = {"float": 4, "double": 8, "Half": 2, "BFloat16": 2}


@dataclasses.dataclass(frozen=True)
class Grid:
    blocks: int
    tiles_of_block: int
    elements_of_tile: int


def grid(elements: int, *, has_loop: bool) -> Grid:
    """The grid of a call with long rows, whose tiles merge freely.

    `has_loop`: the kernel has a loop over tiles, in which it keeps a sum for each of them.
    """
    tiles = -(-elements // TILE)
    merged = (tiles - 1) // ENOUGH_BLOCKS + 1
    tiles = -(-tiles // merged)
    of_block = min(max(2 * tiles // ENOUGH_BLOCKS, 1), TILES_OF_BLOCK) if has_loop else 1
    return Grid(-(-tiles // of_block), of_block, merged * TILE)


def bytes_of_element(name: str) -> int:
    """Bytes per element of a short name such as ``forward<BFloat16, (Access)0>``."""
    kernel, _, rest = name.partition("<")
    return sum(STREAMS[kernel]) * ELEMENT_BYTES[rest.partition(",")[0].rstrip(">")]

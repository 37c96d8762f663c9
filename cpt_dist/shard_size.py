"""How many ranks share the weights: `engine.shard_size` against the number of ranks, without torch."""

from __future__ import annotations

from cpt_dist.errors import UserError


def check_shard_size(shard_size: int, world_size: int) -> None:
    """Raise UserError where `engine.shard_size` (0: all ranks) doesn't divide the number of ranks."""
    if shard_size and world_size % shard_size:
        sizes = [size for size in range(1, world_size + 1) if world_size % size == 0]
        below, above = world_size // shard_size * shard_size, (world_size // shard_size + 1) * shard_size
        ranks = f"{below} or {above}" if below else str(above)
        raise UserError(
            f"engine.shard_size: {shard_size} doesn't divide {world_size} ranks; nearest: start {ranks} ranks, or set "
            f"it to {min(sizes, key=lambda size: (abs(size - shard_size), size))} (0: all ranks)"
        )

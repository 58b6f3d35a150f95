"""Conversations as token ids with a mark on every token that is learned: what the assistant says and what ends it, nothing else."""

from lightune.supervision.ledger import Ledger
from lightune.supervision.packing import Packed, Room, measure_room, pack
from lightune.supervision.rows import TOO_LONG, Supervised, show, supervise
from lightune.supervision.translation import supervise_targets

__all__ = ["TOO_LONG", "Ledger", "Packed", "Room", "Supervised", "measure_room", "pack", "show", "supervise", "supervise_targets"]

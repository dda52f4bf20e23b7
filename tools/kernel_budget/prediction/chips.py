"""The chips of the predictions, and the source of each figure.

The numbers of SMs, the clocks and the memory bandwidths are the vendor's, as named by `source`. The
documents were not available for a check. A copy's rate has been measured on none of the chips. The
model assumes 0.9 of the memory's bandwidth, the ratio of 4.3 TB/s to the 4.8 TB/s of an H200. The
clock is the rated boost clock, except for H200 and H100, whose power limit keeps it lower: 1.755
GHz is assumed."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    name: str
    arch: str  # of the machine code that it runs
    sms: int
    ghz: float
    memory_tb_s: float  # the data sheet's
    copy_tb_s: float  # assumed
    source: str  # of the other figures, except the assumed clock of Hopper

    @property
    def copy_bytes_a_cycle(self) -> float:
        """Bytes per cycle of the whole chip."""
        return self.copy_tb_s * 1e12 / (self.ghz * 1e9)


CHIPS = {
    "h200": Chip("H200 SXM", "sm_90", 132, 1.755, 4.8, 4.3, "H200 data sheet, Hopper whitepaper"),
    "h100": Chip("H100 SXM", "sm_90", 132, 1.755, 3.35, 3.0, "H100 data sheet, Hopper whitepaper"),
    "a100": Chip("A100 80 GB SXM", "sm_80", 108, 1.41, 2.039, 1.83, "A100 data sheet"),
    "l40s": Chip("L40S", "sm_89", 142, 2.52, 0.864, 0.78, "L40S data sheet"),
    "rtx4090": Chip("RTX 4090", "sm_89", 128, 2.52, 1.008, 0.91, "Ada whitepaper"),
    "b200": Chip(
        "B200",
        "sm_100",
        148,
        1.965,
        8.0,
        7.2,
        "reviews, which differ: 1.965 to 1.98 GHz, 7.7 to 8 TB/s",
    ),
    "rtx5090": Chip("RTX 5090", "sm_120", 170, 2.407, 1.792, 1.61, "RTX Blackwell whitepaper"),
}

LATENCIES_NS = (530.0, 660.0, 850.0, 1010.0)  # of a load under load; assumed

"""The programs of the kernels in a .cubin or an extension."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from kernels import cubins, cuobjdump, demangled, short_name, usages
from sass import functions

from prediction.program import Program, program


def programs(file: Path, kernel: str = "", archs: Collection[str] = ()) -> Iterator[Program]:
    """The programs of kernels whose short name contains `kernel` and that have one hot path.

    `archs`: only these architectures, or all if it is empty.

    Kernels of option families have a path for each option, so that no single one is hot.
    """
    with tempfile.TemporaryDirectory() as folder:
        for arch, cubin in cubins(file, folder):
            if archs and arch.rstrip("af") not in archs:
                continue
            resources = usages(cuobjdump("--dump-resource-usage", cubin))
            for mangled, code in functions(cuobjdump("--dump-sass", cubin)).items():
                name = short_name(demangled(mangled))
                if "LatentOptions" in name or "_multi" in name or kernel not in name:
                    continue
                if found := program(name, arch, resources[mangled], code):
                    yield found

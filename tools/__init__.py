"""Tools that you run from the root of a checkout: `python -m tools.kernel_budget`.

`python -m` puts the checkout first on the path. The import below lets `import vae_fused` find the
installed package before the sources.
"""

import benchmarks as benchmarks

# SPDX-License-Identifier: Apache-2.0
"""A literal reading of the published entropy algorithm."""

import numpy as np


def literal_divergence(counts, kept):
    """Follow the slides of S7310 line by line for one candidate; loops, no cumulative sums."""
    total = float(sum(counts))
    reference = [float(count) for count in counts[:kept]]
    reference[-1] += sum(counts[kept:])
    # "Quantize" the bins without the outliers into 128 levels, then expand again.
    sums, filled = [0.0] * 128, [0] * 128
    for k in range(kept):
        sums[k * 128 // kept] += counts[k]
        filled[k * 128 // kept] += counts[k] != 0
    candidate = [sums[k * 128 // kept] / filled[k * 128 // kept] if counts[k] else 0.0
                 for k in range(kept)]
    candidate_total = sum(candidate)
    divergence = 0.0
    for p, q in zip(reference, candidate):
        if p == 0:
            continue
        if q == 0:
            return np.inf
        divergence += p / total * np.log((p / total) / (q / candidate_total))
    return divergence


def literal_divergences(counts):
    return np.array([literal_divergence(counts, kept)
                     for kept in range(128, len(counts) + 1)])

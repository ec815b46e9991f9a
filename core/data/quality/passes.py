"""The two looks of the format phase: at every usable row before redaction, and at the rows that stay."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from core.data.quality.contamination import Overlap
from core.data.quality.inspection import Findings, Ordinals, Prepared, find_pii, look_at, without_pii
from core.data.quality.labels import Labels
from core.data.quality.lengths import Lengths


def scan(texts: pa.Array, origins: Sequence[str], ordinals: Ordinals, prepared: Prepared) -> Findings:
    """Look for personal data, secrets and overlap with benchmarks, and nothing else."""
    overlap = prepared.benchmark.find(texts, ordinals, origins) if prepared.benchmark else Overlap()
    return Findings(
        Lengths.of(np.zeros(0, np.int64)),
        pii=find_pii(texts, origins, ordinals, prepared),
        overlap=without_pii(overlap, prepared),
    )


def profile(
    texts: pa.Array,
    metadata: Sequence[Mapping[str, Any]],
    origins: Sequence[str],
    ordinals: Ordinals,
    total: int,
    prepared: Prepared,
    answers: Sequence[str] | None = None,
) -> Findings:
    """Look at lengths, languages, scripts, markers and labels, and nothing else."""
    seen = look_at(texts, origins, ordinals, replace(prepared, total_rows=total))
    return replace(seen, labels=Labels.of(metadata, prepared.config.balance_by, answers))

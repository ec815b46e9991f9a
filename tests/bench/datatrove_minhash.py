"""Deduplicate plain-text rows with datatrove's four MinHash stages; runs in datatrove's own environment.

    /tmp/dt/bin/python tests/bench/datatrove_minhash.py TEXTS OUT --workers 1 --ngrams 5

Prints one JSON line: seconds per stage. ``OUT/removed/*.jsonl`` are the rows it would drop.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer


class SplitTokenizer(WordTokenizer):
    """Words as they stand between spaces: the fastest there is, in place of the default spaCy tokenizer."""

    def word_tokenize(self, text):
        return text.split()

    def sent_tokenize(self, text):
        return [text]

    def span_tokenize(self, text):
        return [(0, len(text))]


def stages(given, config):
    """Yield the name, the steps and the number of tasks of each stage."""
    out = str(given.out)
    language = SplitTokenizer() if given.words == "split" else "eng"
    reader = JsonlReader(str(given.texts), glob_pattern="*.jsonl")
    tasks = given.workers
    signatures = MinhashDedupSignature(f"{out}/signatures", config=config, language=language)
    yield "signature", [reader, signatures], tasks
    yield (
        "buckets",
        [MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config)],
        config.num_buckets,
    )
    yield "cluster", [MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config)], 1
    # Only the removed rows are written, to leave out what is not deduplication.
    keep_out = JsonlWriter(f"{out}/removed", compression=None)
    yield "filter", [reader, MinhashDedupFilter(f"{out}/remove", exclusion_writer=keep_out)], tasks


def main():
    """Run all stages one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ngrams", type=int, default=5)
    parser.add_argument("--buckets", type=int, default=14)
    parser.add_argument("--hashes", type=int, default=8)
    parser.add_argument("--words", choices=("default", "split"), default="default")
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    config = MinhashConfig(
        n_grams=given.ngrams,
        num_buckets=given.buckets,
        hashes_per_bucket=given.hashes,
        hash_config=HashConfig(precision=64),
    )
    seconds = {}
    for name, steps, tasks in stages(given, config):
        started = time.perf_counter()
        LocalPipelineExecutor(
            steps, tasks=tasks, workers=min(given.workers, tasks), logging_dir=str(given.out / "logs" / name)
        ).run()
        seconds[name] = round(time.perf_counter() - started, 2)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()

"""Datasets in the layouts of the Hugging Face hub; the hub itself is never asked."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

from core.data.config import SourceConfig
from core.data.sources import PRESETS, find_text_field, open_sources
from core.data.sources.hub import parse_name
from core.errors import DataError

ROWS = [{"text": f"row {n} ɛ", "n": n, "tags": ["a"]} for n in range(50)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """One dataset saved in every layout that is understood."""
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("shelf")
    whole = datasets.Dataset.from_list(ROWS)
    test = whole.select(range(40, 50))
    whole.save_to_disk(folder / "saved")
    datasets.DatasetDict(train=whole, test=test).save_to_disk(folder / "splits")
    for name in ("parquet", "configs/en/x", "configs/tw/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "parquet").mkdir()
    whole.to_parquet(folder / "parquet/train-00000.parquet")
    test.to_parquet(folder / "parquet/test-00000.parquet")
    whole.to_parquet(folder / "configs/en/train.parquet")
    test.to_parquet(folder / "configs/tw/train.parquet")
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("en", "tw")
    )
    (folder / "configs/README.md").write_text(card + "---\n")
    return folder


@pytest.fixture
def opened(shelf, tmp_path):
    return lambda path, **more: open_sources(
        [SourceConfig(path=path, **more)], shelf, cache=tmp_path / "cache"
    )[0]


def rows_of(source):
    return [json.loads(row) for _, batch in source.batches() for row in batch.rows]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["saved", "splits", "parquet"])
def test_a_folder_is_read_in_every_layout(opened, name, streaming):
    source = opened(f"hf:./{name}", streaming=streaming, max_rows=50)
    assert rows_of(source) == ROWS
    assert source.files == (f"hf:{name}/train",)
    batches = [batch for _, batch in source.batches()]
    assert [line for batch in batches for line in batch.lines] == list(range(1, 51))
    assert rows_of(opened(f"hf:./{name}", streaming=streaming, max_rows=7)) == ROWS[:7]


def test_an_absolute_path_and_a_bare_name_of_a_folder(opened, shelf):
    assert rows_of(opened(f"hf:{shelf}/parquet")) == ROWS
    source = opened("hf:splits")
    assert rows_of(source) == ROWS
    assert source.notes == ("hf:splits: read from the folder of that name, not from the hub",)


@pytest.mark.parametrize("name", ["splits", "parquet"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("test", ROWS[40:]),
        ("train[:10%]", ROWS[:5]),
        ("train[10:12]", ROWS[10:12]),
        ("train[-3:]", ROWS[-3:]),
        ("train[:2]+test[:1]", [*ROWS[:2], ROWS[40]]),
    ],
)
def test_split_expressions(opened, name, split, expected):
    source = opened(f"hf:./{name}", split=split)
    assert rows_of(source) == expected
    assert source.files == (f"hf:{name}/{split}",)


def test_configs(opened):
    assert rows_of(opened("hf:./configs:en")) == ROWS
    assert rows_of(opened("hf:./configs:tw")) == ROWS[40:]


@pytest.mark.parametrize(
    ("path", "more", "what"),
    [
        ("hf:./splits", {"split": "dev"}, "has no split 'dev'; there are test, train"),
        ("hf:./parquet", {"split": "dev"}, "has no split 'dev'; there are test, train"),
        ("hf:./parquet", {"split": "train[:10"}, "has no split 'train[:10'; there are test, train"),
        ("hf:./parquet", {"split": "dev", "streaming": True, "max_rows": 1}, "there are test, train"),
        ("hf:./configs:fr", {}, "has no config 'fr'; there are en, tw"),
        ("hf:./configs", {}, "has no config '(none)'; there are en, tw"),
        ("hf:./saved:en", {}, "has no config 'en'; there are none"),
        ("hf:./saved", {"revision": "main"}, "a folder has no revision"),
        ("hf:./nothing", {}, "no such folder"),
        ("hf:csv", {}, "is no name of a dataset"),
        ("hf:pandas", {}, "is no name of a dataset"),
        ("hf:", {}, "is no name of a dataset"),
        ("hf:a/b/c", {}, "is no name of a dataset"),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(opened, path, more, what):
    with pytest.raises(DataError) as error:
        rows_of(opened(path, **more))
    assert what in error.value.what
    assert error.value.fix


def test_empty_and_foreign_folders_are_told(shelf, opened):
    (shelf / "empty").mkdir(exist_ok=True)
    (shelf / "foreign").mkdir(exist_ok=True)
    (shelf / "foreign/x.bin").write_bytes(b"x")
    for name in ("empty", "foreign"):
        with pytest.raises(DataError, match="holds no data files"):
            rows_of(opened(f"hf:./{name}"))


def test_pickled_data_is_never_read(shelf, opened):
    (shelf / "pickled").mkdir(exist_ok=True)
    (shelf / "pickled/train.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(DataError):
        rows_of(opened("hf:./pickled"))
    assert not Path("owned").exists()


def test_the_digest_follows_the_content_and_survives_moving(opened, shelf, tmp_path):
    before = opened("hf:./saved").digests()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/saved").symlink_to(shelf / "saved")
    moved = open_sources([SourceConfig(path="hf:./elsewhere/saved")], tmp_path, cache=tmp_path)[0]
    assert moved.digests() == before
    assert opened("hf:./splits").digests() != before


def test_a_split_twice_is_refused(shelf, tmp_path):
    sources = [SourceConfig(path="hf:./saved"), SourceConfig(path="hf:./saved")]
    with pytest.raises(DataError, match="belongs to"):
        open_sources(sources, shelf, cache=tmp_path)


def test_names_and_presets():
    assert parse_name("hf:wikitext", None) == ("Salesforce/wikitext", "wikitext-103-raw-v1", None)
    assert parse_name("hf:wikitext:wikitext-2-raw-v1", "abc") == (
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        "abc",
    )
    assert parse_name("hf:squad", None) == ("squad", None, None)
    assert parse_name("hf:owner/name:en", "main") == ("owner/name", "en", "main")
    assert set(PRESETS) == {"wikitext", "c4", "openwebtext", "wikipedia", "bookcorpus", "redpajama"}
    assert all(preset.text_field == find_text_field([preset.text_field]) for preset in PRESETS.values())


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["id", "text"], "text"),
        (["content", "text"], "text"),
        (["Body", "id"], "Body"),
        (["Text", "content"], "Text"),
        (["document", "article"], "article"),
        (["texts", "instruction"], None),
        ([], None),
    ],
)
def test_the_text_column_is_found_by_its_name(columns, expected):
    assert find_text_field(columns) == expected


OFFLINE = """
import json, sys
from pathlib import Path
from core.data.config import SourceConfig
from core.data.sources import open_sources
from core.errors import DataError
try:
    source = open_sources([SourceConfig(**json.loads(sys.argv[1]))], Path.cwd(), cache=Path.cwd())[0]
    rows = [row for _, batch in source.batches() for row in batch.rows]
    print(json.dumps([rows, source.notes, source.digests()]))
except DataError as error:
    print(json.dumps([error.where, error.what, error.fix]))
"""


def offline(home, **source):
    """Open a source in a process without network, with its own cache."""
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, json.dumps(source)],
        capture_output=True,
        text=True,
        check=True,
        cwd=home,
        env={"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path.cwd()), "PATH": ""},
    )
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def test_offline_gives_one_clear_error_quickly(tmp_path):
    start = time.monotonic()
    where, what, fix = offline(tmp_path, path="hf:wikitext")
    assert time.monotonic() - start < 60
    assert where == "hf:Salesforce/wikitext:wikitext-103-raw-v1"
    assert what == "the Hugging Face hub cannot be reached, and the dataset is not in its cache"
    assert "hf:./folder" in fix


def test_offline_reads_the_commit_in_the_cache_and_no_other(tmp_path, shelf):
    # What the library keeps of owner/name at some commit is what it builds from a folder, under another name.
    builder = datasets.load_dataset_builder(str(shelf / "parquet"), cache_dir=str(tmp_path / "datasets"))
    builder.download_and_prepare()
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "datasets/owner___name/default/0.0.0" / commit
    place.parent.mkdir(parents=True)
    built = Path(builder.cache_dir)
    for file in built.glob("parquet-*.arrow"):
        file.rename(file.with_name(file.name.replace("parquet-", "name-")))
    about = json.loads((built / "dataset_info.json").read_text()) | {
        "dataset_name": "name",
        "config_name": "default",
    }
    (built / "dataset_info.json").write_text(json.dumps(about))
    built.rename(place)
    rows, notes, digests = offline(tmp_path, path="hf:owner/name", max_rows=3)
    assert [json.loads(row) for row in rows] == ROWS[:3]
    assert digests == [["hf:owner/name/train", f"commit:{commit}"]]
    assert "the hub was not asked; commit 0123456789ab is read from the cache" in notes[0]
    _, what, _ = offline(tmp_path, path="hf:owner/name", revision="f" * 40)
    assert "not in its cache" in what
    shutil.copytree(place, place.with_name("e" * 40))
    _, what, _ = offline(tmp_path, path="hf:owner/name", revision=commit)
    assert what == "commit 0123456789ab cannot be loaded, only the cached eeeeeeeeeeee"

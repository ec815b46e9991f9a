import hashlib

import pytest

from core.data.config import SourceConfig
from core.data.sources import expand, expand_all, source_digests
from core.errors import DataError


def names(expanded):
    return [file.name for file in expanded.files]


@pytest.fixture
def base(tmp_path):
    for name in [
        "data/b.jsonl",
        "data/a.csv",
        "data/sub/c.json",
        "data/README.md",
        "data/README",
        "data/LICENSE",
        "data/LICENSE.txt",
        "data/load.py",
        "data/notes.md",
        "data/.hidden.jsonl",
        "data/.cache/d.jsonl",
        "data/sheet.xlsx",
        "other/x.jsonl",
    ]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('{"a": 1}\n')
    return tmp_path


def test_folder_is_searched_recursively_in_order_without_documents(base):
    found = expand("data", base)
    assert names(found) == ["data/a.csv", "data/b.jsonl", "data/sub/c.json"]
    assert found.passed_over == ("data/sheet.xlsx",)


def test_one_file_relative_and_absolute(base, tmp_path):
    assert names(expand("data/b.jsonl", base)) == ["data/b.jsonl"]
    assert names(expand(str(base / "data/b.jsonl"), base)) == ["data/b.jsonl"]
    assert names(expand("../other/x.jsonl", base / "data")) == ["../other/x.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/*.jsonl", ["data/b.jsonl"]),
        ("data/*", ["data/a.csv", "data/b.jsonl"]),
        ("**/*.jsonl", ["data/b.jsonl", "other/x.jsonl"]),
        ("data/**", ["data/a.csv", "data/b.jsonl", "data/sub/c.json"]),
        ("data/[ab].*", ["data/a.csv", "data/b.jsonl"]),
    ],
)
def test_globs(base, pattern, expected):
    assert names(expand(pattern, base)) == expected
    assert names(expand(f"{base}/{pattern}", base)) == expected


def test_brackets_in_a_real_name_are_no_glob(base):
    (base / "data/[1].jsonl").write_text("{}")
    assert names(expand("data/[1].jsonl", base)) == ["data/[1].jsonl"]


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("data/none.jsonl", "no such file or folder"),
        ("nowhere", "no such file or folder"),
        ("data/*.tsv", "matches no file"),
        ("data/**x", "not a usable glob"),
        ("data/sheet.xlsx", "files ending in .xlsx cannot be read"),
        ("data/*.md", "no data file among 2 files (only documentation and hidden files)"),
        ("data/*.xlsx", "no data file among 1 files (data/sheet.xlsx)"),
        ("empty", "the folder is empty"),
    ],
)
def test_nothing_usable_is_an_error_that_names_the_source(base, source, what):
    (base / "empty").mkdir()
    with pytest.raises(DataError) as error:
        expand(source, base)
    assert error.value.where == source
    assert what in error.value.what
    assert error.value.fix


def test_a_file_in_two_sources_is_refused(base):
    with pytest.raises(DataError, match=r"data/b\.jsonl belongs to 'data' and to 'data/b\.jsonl'"):
        expand_all([SourceConfig(path="data"), SourceConfig(path="data/b.jsonl")], base)
    with pytest.raises(DataError, match="belongs to"):
        expand_all([SourceConfig(path="other"), SourceConfig(path="other/")], base)


def test_a_link_beside_its_target_counts_once(base):
    (base / "other/y.jsonl").symlink_to(base / "other/x.jsonl")
    assert names(expand("other", base)) == ["other/x.jsonl"]


def test_no_sources_is_an_error(base):
    with pytest.raises(DataError, match="no source is given"):
        expand_all([], base)


def test_digests_follow_content_and_name(base):
    sources = [SourceConfig(path="data/sub"), SourceConfig(path="other")]
    before = source_digests(sources, base)
    expected = "sha256:" + hashlib.sha256(b'{"a": 1}\n').hexdigest()
    assert before == [("sub/c.json", expected), ("other/x.jsonl", expected)]
    (base / "other/x.jsonl").write_text('{"a": 2}\n')
    after = dict(source_digests(sources, base))
    assert after["sub/c.json"] == expected
    assert after["other/x.jsonl"] != expected


def test_moved_files_keep_their_digests_and_names(base):
    before = source_digests([SourceConfig(path="data/sub")], base)
    (base / "elsewhere").mkdir()
    (base / "data/sub").rename(base / "elsewhere/sub")
    assert source_digests([SourceConfig(path="elsewhere/sub")], base) == before

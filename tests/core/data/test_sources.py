import hashlib
import json
import os

import pytest

from core.data.config import SourceConfig
from core.data.sources import expand, expand_all, open_sources, redacted, source_digests
from core.errors import DataError


def names(expanded):
    return [file.name for file in expanded.files]


def rows_of(opened):
    return [json.loads(row) for _, batch in opened.batches() for row in batch.rows]


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
        "data/CHANGELOG.md",
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


@pytest.fixture
def opened(base, tmp_path):
    return lambda *paths, **more: open_sources(
        [SourceConfig(path=path, **more) for path in paths], base, cache=tmp_path / "cache"
    )


def test_folder_is_searched_recursively_in_order_without_documents(base):
    found = expand("data", base)
    assert names(found) == ["data/a.csv", "data/b.jsonl", "data/notes.md", "data/sub/c.json"]
    assert found.passed_over == ("data/sheet.xlsx",)


@pytest.mark.parametrize("name", ["license-questions.jsonl", "history.csv", "readme.parquet", "changes.json"])
def test_data_about_licences_is_data(base, name):
    (base / "other" / name).write_text("{}")
    assert f"other/{name}" in names(expand("other", base))


def test_one_file_relative_and_absolute(base):
    assert names(expand("data/b.jsonl", base)) == ["data/b.jsonl"]
    assert names(expand(str(base / "data/b.jsonl"), base)) == ["data/b.jsonl"]
    assert names(expand(f"file://{base}/data/b.jsonl", base)) == ["data/b.jsonl"]
    assert names(expand("../other/x.jsonl", base / "data")) == ["../other/x.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/*.jsonl", ["data/b.jsonl"]),
        ("data/*", ["data/a.csv", "data/b.jsonl", "data/notes.md"]),
        ("**/*.jsonl", ["data/b.jsonl", "other/x.jsonl"]),
        ("data/**", ["data/a.csv", "data/b.jsonl", "data/notes.md", "data/sub/c.json"]),
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
        ("data/READ*", "no data file among 2 files (only documentation and hidden files)"),
        ("data/*.xlsx", "no data file among 1 files (data/sheet.xlsx)"),
        ("empty", "the folder is empty"),
        ("pipe.jsonl", "is neither a file nor a folder"),
        ("dangling.jsonl", "a link that leads nowhere"),
        ("loop.jsonl", "a link that leads nowhere"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_nothing_usable_is_an_error_that_names_the_source(base, source, what):
    (base / "empty").mkdir()
    os.mkfifo(base / "pipe.jsonl")
    (base / "dangling.jsonl").symlink_to("nothing")
    (base / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(DataError) as error:
        expand(source, base)
    assert error.value.where == source
    assert what in error.value.what
    assert error.value.fix


def test_links_that_loop_or_lead_nowhere_are_no_harm(base, opened):
    (base / "other/again").symlink_to(base / "other")
    (base / "other/up").symlink_to(base)
    (base / "other/self").symlink_to("self")
    (base / "other/gone.jsonl").symlink_to("nothing")
    os.mkfifo(base / "other/pipe.jsonl")
    found = expand("other", base)
    assert found.files[-1].name == "other/x.jsonl"
    assert {file.path.resolve().name for file in found.files} == {
        "a.csv",
        "b.jsonl",
        "notes.md",
        "c.json",
        "x.jsonl",
    }
    assert [note.split(":")[0] for note in found.notes] == [
        "other/gone.jsonl",
        "other/pipe.jsonl",
        "other/self",
    ]
    assert set(expand("other/**/*.jsonl", base).files[0].name.split("/")) >= {"other"}
    assert opened("other")[0].notes == found.notes


@pytest.mark.parametrize("name", ["gone", "gone.pdf", "gone.jsonl"])
def test_a_link_that_leads_nowhere_is_told_whatever_its_name(base, name):
    (base / "other" / name).symlink_to("nothing")
    found = expand("other", base)
    assert found.notes == (f"other/{name}: a link that leads nowhere, or no regular file; passed over",)
    assert not found.passed_over


def test_linked_folders_are_searched(base):
    (base / "links").mkdir()
    (base / "links/there").symlink_to(base / "data/sub")
    assert names(expand("links", base)) == ["links/there/c.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_may_not_be_listed_is_told(base):
    (base / "data/sub").chmod(0)
    with pytest.raises(DataError, match="cannot be listed: Permission denied"):
        expand("data", base)


def test_a_file_in_two_sources_is_refused(base, opened):
    with pytest.raises(DataError, match=r"data/b\.jsonl belongs to 'data' and to 'data/b\.jsonl'"):
        expand_all([SourceConfig(path="data"), SourceConfig(path="data/b.jsonl")], base)
    with pytest.raises(DataError, match="belongs to"):
        expand_all([SourceConfig(path="other"), SourceConfig(path="other/")], base)
    with pytest.raises(DataError, match="belongs to"):
        opened("other", "other/x.jsonl")


def test_a_link_beside_its_target_counts_once(base):
    (base / "other/y.jsonl").symlink_to(base / "other/x.jsonl")
    assert names(expand("other", base)) == ["other/x.jsonl"]


def test_no_sources_is_an_error(base, opened):
    with pytest.raises(DataError, match="no source is given"):
        expand_all([], base)
    with pytest.raises(DataError, match="no source is given"):
        opened()


def test_sources_elsewhere_have_no_files_here(base):
    assert expand("https://example.org/x.jsonl", base) == ((), (), ())
    assert expand("hf:wikitext", base) == ((), (), ())


def test_every_file_of_a_folder_is_read_by_its_own_ending(base, opened):
    (base / "data/a.csv").write_text("a\n2\n")
    (base / "data/sub/c.json").write_text('[{"a": 3}]')
    (base / "data/notes.md").write_text("# hello")
    (source,) = opened("data")
    assert [(origin, *map(json.loads, batch.rows)) for origin, batch in source.batches()] == [
        ("data/a.csv", {"a": "2"}),
        ("data/b.jsonl", {"a": 1}),
        ("data/notes.md", {"text": "# hello"}),
        ("data/sub/c.json", {"a": 3}),
    ]
    assert source.files == ("data/a.csv", "data/b.jsonl", "data/notes.md", "data/sub/c.json")
    assert source.passed_over == ("data/sheet.xlsx",)


def test_empty_files_are_noted_and_an_empty_source_is_an_error(base, opened):
    (base / "other/empty.jsonl").write_text("\n")
    (source,) = opened("other")
    assert rows_of(source) == [{"a": 1}]
    assert source.notes == ("other/empty.jsonl: holds no rows",)
    for path in ("other/empty.jsonl", "other/emp*"):
        with pytest.raises(DataError, match=r"other/empty\.jsonl: holds no rows"):
            rows_of(opened(path)[0])


@pytest.mark.parametrize("most", [1, 3, 8191, 8192, 8193, 10_000, 20_000])
def test_max_rows_takes_the_first_rows(base, opened, most):
    (base / "other/x.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(10_000)))
    (base / "other/y.jsonl").write_text('{"n": 10000}\n')
    (source,) = opened("other", max_rows=most)
    assert [row["n"] for row in rows_of(source)] == list(range(min(most, 10_001)))
    assert all(batch.rows for _, batch in source.batches())


def test_split_and_revision_are_refused_for_files(opened):
    for more in ({"split": "test"}, {"revision": "main"}):
        with pytest.raises(DataError, match="split and revision are for datasets of the hub"):
            opened("other", **more)


def test_digests_follow_content_and_name(base):
    sources = [SourceConfig(path="data/sub"), SourceConfig(path="other")]
    before = source_digests(sources, base, cache=base)
    expected = "sha256:" + hashlib.sha256(b'{"a": 1}\n').hexdigest()
    assert before == [("sub/c.json", expected), ("other/x.jsonl", expected)]
    (base / "other/x.jsonl").write_text('{"a": 2}\n')
    after = dict(source_digests(sources, base, cache=base))
    assert after["sub/c.json"] == expected
    assert after["other/x.jsonl"] != expected


def test_moved_files_keep_their_digests_and_names(base):
    before = source_digests([SourceConfig(path="data/sub")], base, cache=base)
    (base / "elsewhere").mkdir()
    (base / "data/sub").rename(base / "elsewhere/sub")
    assert source_digests([SourceConfig(path="elsewhere/sub")], base, cache=base) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://u:p@host/a.jsonl?sig=1#x", "https://host/a.jsonl"),
        ("ftp://me@host/x: https://h/y?token=t, again", "ftp://host/x: https://h/y again"),
        ("data/who?.jsonl", "data/who?.jsonl"),
        ("https://u:p@w@host/x", "https://host/x"),
    ],
)
def test_logins_and_signatures_are_taken_out(text, expected):
    assert redacted(text) == expected

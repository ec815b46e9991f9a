import pytest

from core.data import decoding
from core.data.decoding import decoded_chunks, decoded_lines
from core.errors import DataError

TEXT = "Ɛte sɛn?\nsecond \u2028 line\r\nlast"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_or_without_mark_is_read(tmp_path, encoding):
    file = tmp_path / "a.txt"
    file.write_bytes(TEXT.encode(encoding))
    assert list(decoded_lines(file, "a")) == ["Ɛte sɛn?\n", "second \u2028 line\r\n", "last"]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_join_to_the_text_wherever_they_are_cut(tmp_path, monkeypatch, size):
    monkeypatch.setattr(decoding, "_CHUNK", max(size, 4))
    file = tmp_path / "a.txt"
    file.write_bytes(TEXT.encode("utf-8-sig"))
    assert "".join(decoded_chunks(file, "a")) == TEXT


@pytest.mark.parametrize("chunk", [4, 5, 6, 7, 1000])
def test_wrong_byte_is_named_by_offset_and_line(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(decoding, "_CHUNK", chunk)
    file = tmp_path / "a.txt"
    content = "åne\ntwo\nthrëe ".encode() + b"\xe9t\xe9\n"
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(decoded_lines(file, "a.txt"))
    assert error.value.where == "a.txt:3"
    assert f"byte {content.index(0xE9)} (0xe9) is not UTF-8" in error.value.what
    assert "UTF-8" in error.value.fix


def test_cut_utf16_is_named(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("ab\ncd".encode("utf-16")[:-1])
    with pytest.raises(DataError, match=r"a:2: byte 10 .*UTF-16"):
        list(decoded_lines(file, "a"))


def test_binary_is_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("ab".encode("utf-16-le"))
    with pytest.raises(DataError, match="not a text file: byte 1 is zero"):
        list(decoded_lines(file, "a"))


def test_missing_and_unreadable_files_are_user_errors(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(decoded_lines(tmp_path / "none", "none"))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(decoded_lines(tmp_path, "folder"))

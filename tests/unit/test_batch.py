"""Reading batch files as people write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farm.batch import BadRows, Row, RowProblem, read_batch, rows_from
from farm.errors import InputError


def rows_of(path: Path) -> list[dict[str, object]]:
    return [dict(row.cells) for row in read_batch(path)]


def written(folder: Path, data: bytes | str, name: str = "batch.csv") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


PLAIN = "portrait,audio,name\na.png,b.wav,First\n"


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.rstrip("\n").encode(),
        b"\n\n" + PLAIN.replace("\n", "\n\n ,,\n").encode(),
        b" Portrait , AUDIO,Name\n a.png ,b.wav , First \n",
        b'"portrait","audio","name"\n"a.png","b.wav","First"\n',
        b"portrait,audio,name,,\na.png,b.wav,First,,\n",
    ],
    ids=[
        "plain",
        "bom",
        "crlf",
        "cr",
        "semicolon",
        "tab",
        "no-last-newline",
        "blank-lines",
        "spaces",
        "quotes",
        "empty-columns",
    ],
)
def test_the_same_rows_are_read_however_a_program_wrote_them(tmp_path: Path, data: bytes) -> None:
    assert rows_of(written(tmp_path, data)) == [{"portrait": "a.png", "audio": "b.wav", "name": "First"}]


def test_chinese_names_and_quoted_commas_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path, 'portrait,audio,prompt\n老师.png,第一课.wav,"你好, ""世界"""\n')
    assert rows_of(path) == [{"portrait": "老师.png", "audio": "第一课.wav", "prompt": '你好, "世界"'}]


def test_a_row_knows_its_line_even_after_a_cell_of_several_lines(tmp_path: Path) -> None:
    path = written(tmp_path, 'portrait,audio,prompt\na,b,"one\ntwo"\n\nc,d,\n')
    assert [(row.number, row.cells["portrait"]) for row in read_batch(path)] == [(2, "a"), (5, "c")]


def test_empty_cells_are_left_out(tmp_path: Path) -> None:
    assert rows_of(written(tmp_path, "portrait,audio,seed\na,b,\n")) == [{"portrait": "a", "audio": "b"}]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "JSONL"])
def test_json_lines_are_read_with_their_types(tmp_path: Path, suffix: str) -> None:
    lines = [
        json.dumps({"Portrait": "a.png", "audio": "b.wav", "seed": 7, "settings": {"mouth": 1.2, "seed": 1}}),
        "",
        json.dumps({"portrait": "老师.png", "audio": "d\u2028e.wav", "prompt": None}, ensure_ascii=False),
    ]
    path = written(tmp_path, "\r\n".join(lines), f"batch.{suffix}")
    assert [(row.number, dict(row.cells)) for row in read_batch(path)] == [
        (1, {"portrait": "a.png", "audio": "b.wav", "seed": 7, "mouth": 1.2}),
        (3, {"portrait": "老师.png", "audio": "d\u2028e.wav"}),
    ]


def test_rows_from_python_are_counted_from_one() -> None:
    assert rows_from([{"Portrait": "a", "audio": "b", "name": ""}]) == [Row(1, {"portrait": "a", "audio": "b"})]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty; its first line names the columns, at least portrait and audio"),
        (b"portrait,audio\n", "has no rows"),
        (b"portrait,sound\na,b\n", ":1: no column audio; the first line names the columns (found: portrait, sound)"),
        (b"a,b\n1,2\n", ":1: no column portrait and no column audio; the first line names the columns (found: a, b)"),
        (b"portrait,audio,audio\na,b,c\n", ":1: column audio stands twice"),
        (b"portrait,audio\na,b\nc,d,e\n", ":3: 3 cells for 2 columns; put quotes around a cell that holds ','"),
        (b"portrait\taudio\na\tb\tc\n", ":2: 3 cells for 2 columns; put quotes around a cell that holds a tab"),
        (b'portrait,audio\na,"b\nc,d\n', ":2: unexpected end of data; is a quote missing?"),
        (b"portrait,audio\na\0,b\n", " holds binary data; give a CSV or JSONL file in UTF-8"),
        (
            "portrait,audio\na,b\n老师.png,课.wav\n".encode("gbk"),
            ":3: this is not UTF-8 text; save the file as UTF-8 (in Excel: CSV UTF-8)",
        ),
        ("portrait,audio\n".encode("utf-16"), ":1: this is not UTF-8 text"),
    ],
    ids=[
        "empty",
        "header-only",
        "no-audio",
        "no-columns",
        "twice",
        "long-row",
        "long-row-tab",
        "quote",
        "nul",
        "gbk",
        "utf16",
    ],
)
def test_a_file_that_cannot_be_read_says_what_is_wrong_in_one_sentence(
    tmp_path: Path, data: bytes, sentence: str
) -> None:
    path = written(tmp_path, data)
    with pytest.raises(InputError) as caught:
        read_batch(path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", ":2: no JSON: "),
        ("[1]", ":2: each line is one JSON object with portrait and audio"),
        ('{"seed": ' + "9" * 5000 + "}", ":2: no JSON: "),
        ("[" * 100_000, ":2: no JSON: nested too deeply"),
    ],
    ids=["cut", "list", "huge-number", "deep"],
)
def test_a_line_that_is_no_json_object_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    path = written(tmp_path, '{"portrait": "a", "audio": "b"}\n' + line, "batch.jsonl")
    with pytest.raises(InputError) as caught:
        read_batch(path)
    assert f"{path}{sentence}" in str(caught.value)


def test_what_is_not_a_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_batch(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder; give a CSV or JSONL file"):
        read_batch(tmp_path)
    with pytest.raises(InputError, match="is not a regular file"):
        read_batch(Path("/dev/zero"))


def test_a_long_list_of_bad_rows_is_cut_and_counted() -> None:
    problems = [RowProblem(line, "no audio") for line in range(2, 70)]
    lines = str(BadRows(problems, "batch.csv")).splitlines()
    assert lines[0] == "68 rows cannot be rendered; nothing was submitted."
    assert lines[1] == "batch.csv:2: no audio"
    assert lines[-1] == "… and 18 more"
    assert str(BadRows(problems[:1], "batch.csv")).startswith("1 row cannot be rendered")

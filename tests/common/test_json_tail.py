# SPDX-License-Identifier: Apache-2.0
"""Files of JSON lines that grow, are cut, are rotated."""

from pathlib import Path

from common.json_tail import JsonTail


def test_each_line_once_and_half_a_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = JsonTail(path)
    assert list(tail.news()) == []
    path.write_text('{"a": 1}\nno json\n[1]\n{"a": 2}\n{"a":')
    assert list(tail.news()) == [{"a": 1}, {"a": 2}]
    assert list(tail.news()) == []
    with path.open("a") as file:
        file.write(" 3}\n")
    assert list(tail.news()) == [{"a": 3}]


def test_from_the_end_only_what_comes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"a": 1}\n')
    tail = JsonTail(path, from_the_end=True)
    assert list(tail.news()) == []
    with path.open("a") as file:
        file.write('{"a": 2}\n')
    assert list(tail.news()) == [{"a": 2}]


def test_from_the_end_of_a_file_that_is_not_there_yet_is_everything(tmp_path: Path) -> None:
    tail = JsonTail(tmp_path / "log", from_the_end=True)
    (tmp_path / "log").write_text('{"a": 1}\n')
    assert list(tail.news()) == [{"a": 1}]


def test_a_rotated_file_and_one_that_was_cut_are_read_from_their_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    tail = JsonTail(path)
    assert len(list(tail.news())) == 2
    path.rename(tmp_path / "log.1")
    path.write_text('{"a": 3}\n{"a": 4}\n{"a": 5}\n')
    assert [line["a"] for line in tail.news()] == [3, 4, 5]
    path.write_text('{"a": 6}\n')
    assert [line["a"] for line in tail.news()] == [6]
    path.unlink()
    assert list(tail.news()) == []

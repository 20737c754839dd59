import pytest

from imagepipe.base.errors import ConfigError
from imagepipe.base.label_map import read_label_map

ITEMS = """
# of the detection API
item {
  id: 1
  name: '/m/01'
  display_name: "it's a \\"rose\\" {red}"
}
item { name: "daisy", id: 2; keypoints { id: 7 label: "petal" } }
"""


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("names.txt", "daisy\nred rose\n", {0: "daisy", 1: "red rose"}),
        ("names.txt", "\ufeffdaisy\r\n12:30\r\n", {0: "daisy", 1: "12:30"}),
        ("names.txt", "1:daisy\n7: a:b\n\n", {1: "daisy", 7: "a:b"}),
        ("names.txt", "3 of hearts\nace\n", {0: "3 of hearts", 1: "ace"}),
        ("map.pbtxt", ITEMS, {1: 'it\'s a "rose" {red}', 2: "daisy"}),
        ("map.pbtxt", ITEMS + "# " + "#" * 60 + "\n# the end", {1: 'it\'s a "rose" {red}', 2: "daisy"}),
        ("map.pbtxt", r"""item { id: 1 name: "girls'" } item { id: 2 name: "6\"" }""", {1: "girls'", 2: '6"'}),
        ("map.pbtxt", r"item { id: 1 name: 'caf\303\251' }", {1: "caf\u00e9"}),
    ],
)
def test_names_are_read_by_line_by_number_and_from_a_label_map(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content, newline="")
    assert read_label_map(str(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("names.txt", "a\n\nb\n", "line 2 has no name"),
        ("names.txt", "a\nb\na\n", "line 3: 'a' is the name of 0 already"),
        ("names.txt", "1:a\n1:b\n", "line 2: 1 has a name already, 'a'"),
        ("names.txt", "a\tb\n", r"line 1: 'a\\tb' holds a control character"),
        ("names.txt", "", "has no name"),
        ("names.txt", "id:name\n1:a\n2:b\n", "line 1 has no number, and others have"),
        ("names.txt", "1 daisy\n2 red rose\n", "line 1: is 1 the number of daisy"),
        ("map.pbtxt", "#" * 60 + "}" + "#" * 60 + "\n!", "line 1 is not of a label map"),
        ("map.pbtxt", "item { id: 1 }", "item 1 has no name"),
        ("map.pbtxt", "item { name: 'a' }", "item 1 has no id"),
        ("map.pbtxt", "item { id: 1 name: 'a'", "line 1 is not of a label map"),
        ("map.pbtxt", "item {\n id 1\n}", "line 1 is not of a label map|line 2 is not"),
    ],
)
def test_what_is_no_label_map_is_refused_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"data\.features\.label_map: .*{name}: .*({message})"):
        read_label_map(str(tmp_path / name))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"label_map: .*x\.txt: No such file"):
        read_label_map(str(tmp_path / "x.txt"))

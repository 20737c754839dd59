import pytest

from imagepipe.base.errors import DataError
from imagepipe.base.labels import (
    decode_names,
    describe_ids,
    encode_names,
    find_fault,
    list_label_warnings,
    list_names,
)

ODD = ["", " a b ", "a|b", "Ägypten", "zero\u200bwidth", "\u202ertl", "ﬁ", "🐈", "no\u00a0break", "'quoted'"]


def test_names_come_back_as_they_were_written():
    assert decode_names(encode_names(ODD)) == ODD
    assert encode_names(["b", "a"]) == b"b\na\n"
    assert decode_names(b"") == []
    assert decode_names(b"a\nb") == ["a", "b"]


def test_only_a_line_feed_ends_a_name():
    names = ["golden\u2028retriever", "misc\x85 other", "a\x1cb", "vertical\x0btab", "carriage\rreturn"]
    assert decode_names("".join(f"{name}\n" for name in names).encode()) == names


@pytest.mark.parametrize("character", [*map(chr, range(32)), *map(chr, range(127, 160)), "\u2028", "\u2029"])
def test_no_control_character_and_no_end_of_a_line_gets_into_a_name(character):
    name = f"golden{character}retriever"
    assert find_fault(name).endswith(f"(U+{ord(character):04X})")
    with pytest.raises(DataError, match=r"the label 'golden.*retriever' holds a "):
        encode_names(["beagle", name])


def test_bytes_that_are_not_utf_8_name_no_class():
    for errors in ("surrogateescape", "replace"):
        assert find_fault("café".encode("latin-1").decode(errors=errors)).startswith("bytes that are not UTF-8")
    assert not any(map(find_fault, ODD))


def test_labels_of_which_most_images_have_their_own_look_like_ids():
    ids = {f"image {number}": 1 for number in range(900)}
    message = describe_ids(902, [ids, {"image 1": 1, "image 1000": 1}])
    assert message.startswith(
        "has 901 different values for 902 images, and 900 of them are on a single image, such as image 0, image 10, "
    )
    assert describe_ids(900, [ids | {"photo": 900}])  # tags, one of which is the id


@pytest.mark.parametrize(
    ("images", "counts"),
    [
        (1800, [{f"item {number}": 2 for number in range(900)}]),
        (202, [{f"item {number}": 1 for number in range(101)}] * 2),  # one in either split
        (90, [{f"class {number}": 3 for number in range(30)}]),
        (99, [{f"class {number}": 1 + (number < 39) for number in range(60)}]),
        (1500, [{f"class {number}": 1 if number < 600 else 3 for number in range(900)}]),  # a long tail
        (12, [{f"tag {number}": 1 for number in range(60)}]),  # five tags each
        (2, [{"a": 1, "b": 1}]),
        (900, [{}]),  # a regression
        (0, []),
    ],
)
def test_classes_and_tags_with_few_images_do_not_look_like_ids(images, counts):
    assert describe_ids(images, counts) is None


def test_a_long_list_is_cut():
    assert list_names(list("abc")) == "a, b, c"
    assert list_names(list(map(str, range(1234)))).endswith("8, 9 and 1,224 more")


@pytest.mark.parametrize(
    ("counts", "warnings"),
    [
        ([{"Train": 80, "val": 20}], ["The labels Train, val look like splits, not like classes. "]),
        ([{"train2017": 80, "val2017": 20}], ["The labels train2017, val2017 look like splits, not like classes. "]),
        ([{"train": 80}, {"train": 3}], ["The labels train look like splits, not like classes. "]),
        ([{"seg_train": 80, "seg_test": 20, "seg_pred": 9}], ["The labels seg_test, seg_train look like splits"]),
        ([{"roses": 80, "test": 20}], []),
        ([{"train station": 80, "test tube": 20, "bus": 9, "car": 9}], []),
        ([{"steam train": 80, "freight train": 20}], []),
        ([{"a.jpg": 1, "b.JPEG": 1, "c": 1}], ["Labels such as a.jpg look like file names, not like classes. "]),
        ([{"set/1": 40, "set\\2": 40}], ["Labels such as set/1 look like file names"]),
        ([{f"{i}": 1 for i in range(60)}], ["The label has 60 different values for 60 images, and 60 of them are on"]),
        ([{"a": 1, "b": 1}, {"c": 1}], ["Each of 3 images has a label of its own, such as a: nothing can be learned"]),
        ([{"flowers": 30}, {"flowers": 3}], ["All images have the label flowers, and a classifier needs two classes."]),
        ([{"daisy": 40, "roses": 40}, {"daisy": 4}], []),
        ([{"a": 1, "b": 1}], []),
        ([{}, {}], []),
    ],
)
def test_labels_that_look_like_something_else_are_named_with_the_remedy(counts, warnings):
    images = sum(count for split in counts for count in split.values())
    result = list_label_warnings(images, counts)
    assert len(result) == len(warnings)
    for text, start in zip(result, warnings, strict=True):
        assert text.startswith(start)
        assert "Give the" in text

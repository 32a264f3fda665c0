"""The tables [data] and [[data.sets]]."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pixelkiln.trainer.data.options import DataOptions, PictureOptions, SetOptions


def data(**values) -> DataOptions:
    return DataOptions.model_validate(values)


def test_one_folder_is_enough():
    assert [(name, one.path, one.repeats) for name, one in data(path="p").named_sets()] == [("data", "p", 1)]


def test_a_set_takes_what_it_does_not_say_from_data():
    made = data(flip=True, repeats=4, path="a", sets=[{"path": "b"}, {"path": "c", "flip": False, "repeats": 1}])
    assert [(one.path, one.flip, one.repeats) for _, one in made.named_sets()] == [
        ("a", True, 4), ("b", True, 4), ("c", False, 1),
    ]  # fmt: skip


def test_what_was_read_can_be_written_and_read_again():
    made = data(shuffle=True, resolution=[512, 768], sets=[{"path": "b", "caption_extension": "caption"}])
    assert data(**made.model_dump()) == made
    assert data(**made.model_dump(exclude_unset=True)) == made


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "a", "pairs": "b"}, r"data: pairs and pictures \(path, sets or metadata\) are given"),
        ({"pairs": "a", "ratings": "b"}, "data: pairs and ratings are given; one run trains on one of them"),
        ({"pairs": "a", "masks": "b"}, "masks: it is not read with pairs, whose file names all there is; leave it out"),
        ({"ratings": "a", "metadata": "b"}, "metadata: it is not read with ratings, whose file names all there is"),
        ({"sets": [{"repeats": 2}]}, 'a set needs pictures; give path = "folder"'),
        ({"path": "a", "random_crop": True}, r'data\.random_crop: .* set \[data\] cache_latents = "off"'),
        ({"sets": [{"path": "a", "color": True}]}, r"data\.sets\[0\]\.color: it changes the picture each time"),
        ({"path": "a", "face_crop": [1, 2.0], "cache_latents": "off"}, r"data\.face_crop: .*set buckets = false"),
        ({"path": "a", "face_crop": [3.0, 2.0]}, "is not a range; give"),
        ({"resolution": 500}, "500 is not a size for training; sides are multiples of 8"),
        ({"resolution": [512]}, r"\[512\] is not a size; give one number, or \[width, height\]"),
        ({"shuffle": "false"}, "valid boolean"),
        ({"captoin": "x"}, "Extra inputs"),
        ({"validation_split": 1.0}, "less than 1"),
        ({"separator": ""}, "at least 1 character"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        data(**values)


def test_every_field_has_a_help_text_and_a_set_is_a_part_of_data():
    for model in (DataOptions, SetOptions):
        assert [name for name, field in model.model_fields.items() if not field.description] == []
    assert set(SetOptions.model_fields) - set(PictureOptions.model_fields) == {
        "path", "is_reg", "batch", "pool", "preserve",
    }  # fmt: skip

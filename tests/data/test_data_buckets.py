"""Buckets and size conditioning. All sizes and counts were made by sd-scripts 48d368fa's BucketManager."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelkiln.trainer.data.buckets import Fit, Rules, assign, conditioning, cover, resolutions, rules
from pixelkiln.trainer.data.options import DataOptions

PLAIN = Rules((1024, 1024), True, 256, 2048, 64)
SHRINK = Rules((1024, 1024), True, 256, 2048, 64, no_upscale=True)


@pytest.mark.parametrize(
    ("side", "low", "high", "step", "count"),
    [(512, 256, 1024, 64, 17), (1024, 256, 1024, 64, 25), (1024, 256, 2048, 64, 41), (1024, 512, 2048, 32, 65)],
)
def test_how_many_buckets(side, low, high, step, count):
    assert len(resolutions((side, side), low, high, step)) == count


@pytest.mark.parametrize(
    ("size", "bucket", "resized"),
    [
        ((1000, 1500), (832, 1216), (832, 1248)),
        ((640, 480), (1152, 896), (1195, 896)),
        ((1920, 1080), (1344, 768), (1365, 768)),
        ((4000, 1000), (2048, 512), (2048, 512)),
        ((1023, 1025), (1024, 1024), (1024, 1026)),
    ],
)
def test_a_picture_goes_where_the_aspect_ratio_is_nearest(size, bucket, resized):
    assert assign(size, PLAIN) == Fit(bucket, resized)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1000, 1500), (832, 1216)),
        ((640, 480), (640, 448)),
        ((1920, 1080), (1344, 768)),
        ((4000, 1000), (2048, 512)),
        ((1023, 1025), (960, 1024)),
    ],
)
def test_without_enlarging(size, bucket):
    fit = assign(size, SHRINK)
    assert fit is not None and fit.bucket == bucket


def test_the_distance_of_aspect_ratios_is_linear_so_that_portrait_and_landscape_differ():
    tall, wide = assign((1000, 1370), PLAIN), assign((1370, 1000), PLAIN)
    assert tall is not None and wide is not None
    assert (tall.bucket, wide.bucket) == ((832, 1216), (1152, 896))


def test_a_sliver_does_not_fill_a_bucket():
    assert assign((5000, 40), SHRINK) is None
    assert assign((40, 40), SHRINK) is None


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(64, 6000), st.integers(64, 6000)),
    st.sampled_from([PLAIN, SHRINK, Rules((512, 768), True, 256, 1024, 32), Rules((512, 512), buckets=False)]),
)
def test_a_fit_covers_its_bucket_and_the_bucket_its_area(size, shape):
    fit = assign(size, shape)
    if fit is None:
        assert shape.no_upscale
        return
    assert fit.bucket[0] <= fit.resized[0] and fit.bucket[1] <= fit.resized[1]
    assert fit.bucket[0] * fit.bucket[1] <= shape.resolution[0] * shape.resolution[1] * 1.13
    if shape.buckets:
        assert fit.bucket[0] % shape.step == fit.bucket[1] % shape.step == 0
    if shape.no_upscale:
        assert fit.resized[0] <= size[0] and fit.resized[1] <= size[1]
    else:
        assert fit.resized == cover(size, fit.bucket)
        assert fit.resized[0] == fit.bucket[0] or fit.resized[1] == fit.bucket[1]


@pytest.mark.parametrize(
    ("original", "bucket", "flipped", "expected"),
    [
        ((1000, 1500), (832, 1216), False, (1500, 1000, 0, 10, 1216, 832)),
        ((1000, 1500), (832, 1216), True, (1500, 1000, 0, 11, 1216, 832)),
        ((640, 480), (1152, 896), False, (480, 640, 16, 0, 896, 1152)),
        ((1024, 1024), (1024, 1024), True, (1024, 1024, 0, 0, 1024, 1024)),
    ],
)
def test_size_conditioning(original, bucket, flipped, expected):
    assert conditioning(original, bucket, flipped) == expected


def options(**values) -> DataOptions:
    return DataOptions.model_validate({"path": "p", **values})


def test_rules_follow_the_resolution_where_nothing_is_said():
    assert rules(options(), 512) == Rules((512, 512), True, 256, 1024, 64)
    assert rules(options(), 128) == Rules((128, 128), True, 64, 256, 64)
    assert rules(options(resolution=[768, 512], bucket_step=32), 128) == Rules((768, 512), True, 256, 1536, 32)


def test_bounds_are_rounded_to_the_step():
    found = rules(options(resolution=512, bucket_min=300, bucket_max=1000), 512)
    assert (found.low, found.high) == (256, 1024)


def test_a_resolution_outside_of_the_bounds_is_refused():
    with pytest.raises(ValueError, match=r"data: resolution 1024x1024 lies outside .* 256 to 512; change bucket_min"):
        rules(options(resolution=1024, bucket_min=256, bucket_max=512), 512)

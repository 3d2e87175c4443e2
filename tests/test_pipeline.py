"""The pipeline: what a batch holds depends on the seed and the step alone."""

import collections
import itertools

import numpy as np
import pytest

from fcn_jax.data import canvases, datasets, images, pipeline

CANVAS = (96, 96)
WHOLE = pipeline.Augmentation(CANVAS)
AUGMENTED = pipeline.Augmentation((48, 40), crop=True, scale=(0.5, 2.0), flip=True, colour_jitter=0.3)


@pytest.fixture(scope="module")
def split(data_dir):
    """Eight images of sides 64 to 96."""
    return datasets.open_split("shapes", "tiny", data_dir=data_dir)


def take(dataset, *steps):
    return [dataset[step] for step in steps]


def assert_same(found, expected):
    """Two lists of elements are equal to the last pixel."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys() == {"image", "label", "size", "id", "corrupt"}
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], key)


def differ(a, b):
    return any((a[key] != b[key]).any() for key in ("image", "label", "size", "id"))


def drawn(dataset, count):
    """The ids of the first `count` elements, in order."""
    return [str(name) for step in range(count) for name in dataset[step]["id"].ravel()]


def decoded(split, name):
    record = split.source[split.ids.index(str(name))]
    return images.decode_image(record["image"], name), images.decode_label(record["label"], name)


def assert_whole(split, image, label, size, name):
    """One padded example is the image and label of that id, black and void around them."""
    expected, expected_label = decoded(split, name)
    height, width = size
    assert expected_label.shape == (height, width)
    np.testing.assert_array_equal(image[:height, :width], expected)
    np.testing.assert_array_equal(label[:height, :width], expected_label)
    inside = np.zeros(label.shape, bool)
    inside[:height, :width] = True
    assert (image[~inside] == 0).all()
    assert (label[~inside] == 255).all()


def test_an_element_has_the_shapes_and_types_that_are_promised(split):
    element = pipeline.train_dataset(
        split, AUGMENTED, seed=0, batch_size=4, accumulate=3, reading=pipeline.Reading(process_count=2)
    )[0]
    assert {key: value.shape for key, value in element.items()} == {
        "image": (3, 2, 48, 40, 3),
        "label": (3, 2, 48, 40),
        "size": (3, 2, 2),
        "id": (3, 2),
        "corrupt": (3, 2),
    }
    assert element["corrupt"].dtype == bool
    assert not element["corrupt"].any()
    assert [element[key].dtype for key in ("image", "label", "size")] == [np.uint8, np.uint8, np.int32]
    assert (element["size"] >= 1).all()
    assert (element["size"] <= (48, 40)).all()


def test_without_augmentation_images_are_whole_and_unaltered(split):
    for element in take(pipeline.train_dataset(split, WHOLE, seed=0, batch_size=4), 0, 1, 5):
        for b in range(4):
            assert_whole(split, *(element[key][0, b] for key in ("image", "label", "size", "id")))


def test_iterating_from_a_step_gives_the_elements_from_there(split):
    dataset = pipeline.train_dataset(split, AUGMENTED, seed=3, batch_size=3, accumulate=2)
    expected = take(dataset, *range(8))
    assert_same(list(itertools.islice(pipeline.iterate(dataset, 0, 1), 8)), expected)
    assert_same(list(itertools.islice(pipeline.iterate(dataset, 5, 1), 3)), expected[5:])
    # The second time the same: nothing is remembered.
    assert_same(take(dataset, 7, 0), [expected[7], expected[0]])


@pytest.mark.parametrize("replacement", [False, True])
def test_threads_change_nothing(split, replacement):
    dataset = pipeline.train_dataset(split, AUGMENTED, seed=3, batch_size=3, replacement=replacement)
    one, two = (list(itertools.islice(pipeline.iterate(dataset, 2, threads), 8)) for threads in (1, 2))
    assert_same(two, one)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (4, 1), (8, 1), (2, 2), (4, 3)])
def test_the_shares_of_the_processes_make_up_the_global_batch(split, processes, accumulate, replacement):
    options = {"seed": 5, "batch_size": 8, "accumulate": accumulate, "replacement": replacement}
    steps = (0, 1, 6)
    shares = [
        take(
            pipeline.train_dataset(
                split, AUGMENTED, **options, reading=pipeline.Reading(process_index=i, process_count=processes)
            ),
            *steps,
        )
        for i in range(processes)
    ]
    found = [
        {key: np.concatenate([share[key] for share in step], axis=1) for key in step[0]}
        for step in zip(*shares, strict=True)
    ]
    assert_same(found, take(pipeline.train_dataset(split, AUGMENTED, **options), *steps))


def test_accumulated_batches_are_the_same_images_in_the_same_order(split):
    single = pipeline.train_dataset(split, AUGMENTED, seed=5, batch_size=3)
    double = pipeline.train_dataset(split, AUGMENTED, seed=5, batch_size=3, accumulate=2)
    for step in (0, 4):
        pair = take(single, 2 * step, 2 * step + 1)
        assert_same([double[step]], [{key: np.concatenate([e[key] for e in pair]) for key in pair[0]}])


@pytest.mark.parametrize("replacement", [False, True])
def test_the_seed_decides_order_and_augmentation(split, replacement):
    def element(seed, augmentation):
        return pipeline.train_dataset(split, augmentation, seed=seed, batch_size=8, replacement=replacement)[0]

    assert_same([element(1, AUGMENTED)], [element(1, AUGMENTED)])
    first, second = element(1, AUGMENTED), element(2, AUGMENTED)
    assert (first["id"] != second["id"]).any()
    # Of an image that both drew, the crops differ as well.
    name = min({*first["id"].ravel()} & {*second["id"].ravel()})
    crops = [{key: e[key][e["id"] == name][:1] for key in e} for e in (first, second)]
    assert differ(*crops)


def test_every_epoch_holds_every_image_once_and_in_another_order(split):
    dataset = pipeline.train_dataset(split, WHOLE, seed=0, batch_size=2)
    names = drawn(dataset, 5 * 4)
    epochs = [names[start : start + 8] for start in range(0, 40, 8)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(split.ids)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert epochs[0] != split.ids


def test_batches_may_span_epochs(split):
    # 8 images in batches of 3: the third batch takes two of the first epoch and one of the second.
    names = drawn(pipeline.train_dataset(split, WHOLE, seed=0, batch_size=3), 8)
    for epoch in (names[:8], names[8:16], names[16:24]):
        assert sorted(epoch) == sorted(split.ids)


def test_epochs_are_augmented_anew(split):
    dataset = pipeline.train_dataset(split, AUGMENTED, seed=0, batch_size=8)
    first, second = ({name: index for index, name in enumerate(dataset[step]["id"][0])} for step in (0, 1))
    for name, index in first.items():
        assert differ(
            {key: value[0, index] for key, value in dataset[0].items() if key != "id"} | {"id": np.array(name)},
            {key: value[0, second[name]] for key, value in dataset[1].items() if key != "id"} | {"id": np.array(name)},
        )


def test_with_replacement_images_are_drawn_independently(split):
    names = drawn(pipeline.train_dataset(split, WHOLE, seed=0, batch_size=8, replacement=True), 50)
    counts = collections.Counter(names)
    assert sorted(counts) == sorted(split.ids)
    # 400 draws of 8 images: 50 each, with a standard deviation of 6.6.
    assert all(25 <= count <= 75 for count in counts.values())
    # An epoch of 8 different images has the probability 8! / 8^8 = 0.0024, two equal ones in a row 1 / 8.
    complete = sum(len({*names[start : start + 8]}) == 8 for start in range(0, 400, 8))
    assert complete <= 2
    repeated = sum(a == b for a, b in itertools.pairwise(names))
    assert 25 <= repeated <= 75
    assert len({tuple(names[start : start + 8]) for start in range(0, 400, 8)}) == 50


def test_half_of_the_images_are_mirrored(split):
    dataset = pipeline.train_dataset(split, pipeline.Augmentation(CANVAS, flip=True), seed=0, batch_size=8)
    mirrored = 0
    for element in take(dataset, *range(12)):
        for image, label, (height, width), name in zip(
            *(element[key][0] for key in ("image", "label", "size", "id")), strict=True
        ):
            expected, expected_label = decoded(split, name)
            flipped = not (image[:height, :width] == expected).all()
            step = -1 if flipped else 1
            np.testing.assert_array_equal(image[:height, :width], expected[:, ::step])
            np.testing.assert_array_equal(label[:height, :width], expected_label[:, ::step])
            mirrored += flipped
    assert 32 <= mirrored <= 64  # of 96, with a standard deviation of 5


def test_jitter_changes_colours_alone(split):
    options = {"seed": 0, "batch_size": 8}
    plain = pipeline.train_dataset(split, WHOLE, **options)[0]
    jittered = pipeline.train_dataset(split, pipeline.Augmentation(CANVAS, colour_jitter=0.5), **options)[0]
    for key in ("label", "size", "id"):
        np.testing.assert_array_equal(jittered[key], plain[key])
    inside = plain["image"].any(-1)
    assert (jittered["image"][~inside] == 0).all()
    assert (jittered["image"] != plain["image"]).any((2, 3, 4)).all()


def all_on(canvas, count, batch_size):
    """Batches of all images in order, on one canvas."""
    return [canvases.Batch(canvas, tuple(range(count))[k : k + batch_size]) for k in range(0, count, batch_size)]


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (3, 1), (4, 1), (100, 1), (2, 2), (4, 2), (100, 2)])
def test_evaluation_takes_every_image_once(split, batch_size, processes):
    """On canvases of two sizes, the last batch of each filled up."""
    first, second = all_on(CANVAS, 5, batch_size), [canvases.Batch((CANVAS[0] + 9, CANVAS[1]), (6, 5, 7)[:batch_size])]
    planned = [*first, *second]
    shares = [
        pipeline.eval_dataset(
            split, planned, batch_size=batch_size, reading=pipeline.Reading(process_index=i, process_count=processes)
        )
        for i in range(processes)
    ]
    assert [len(share) for share in shares] == [len(planned)] * processes
    for step, expected in enumerate(planned):
        rows = []
        for share in shares:
            batch = share[step]
            assert batch["label"].shape == (batch_size // processes, *expected.canvas)
            rows += zip(*(batch[key] for key in ("image", "label", "size", "id")), strict=True)
        names = [split.ids[index] for index in expected.images]
        assert [str(row[-1]) for row in rows] == names + [""] * (batch_size - len(names))
        for row in rows[: len(names)]:
            assert_whole(split, *row)
        for image, label, size, _ in rows[len(names) :]:
            np.testing.assert_array_equal(size, [1, 1])
            assert (image == 0).all()
            assert (label == 255).all()


def test_evaluation_may_be_iterated_and_ends(split):
    dataset = pipeline.eval_dataset(split, all_on(CANVAS, 8, 3), batch_size=3)
    assert_same(list(pipeline.iterate(dataset, 0, 2)), take(dataset, 0, 1, 2))


def test_largest_size_holds_every_image(split):
    shapes = np.array([decoded(split, name)[1].shape for name in split.ids])
    height, width = pipeline.largest_size(split)
    assert (height, width) == tuple(shapes.max(0))
    with pytest.raises(ValueError, match=f"does not fit a canvas of {height - 1}x{width}"):
        list(pipeline.iterate(pipeline.eval_dataset(split, all_on((height - 1, width), 8, 8), batch_size=8), 0, 1))

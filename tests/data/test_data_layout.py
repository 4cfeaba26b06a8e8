"""Which folders are parts and which are classes, in the trees that people really have."""

import io
import os
import re
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

import minires.data as data
from minires.data.layout import layout
from minires.data.parts import matching, part_of, parts_of
from minires.data.tree import Entry
from minires.errors import DataError, UnknownName

COUNT = iter(range(10**9))


def picture():
    """Another one at each call."""
    number = next(COUNT)
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 251, number // 251, 7)).save(file, "PNG")
    return file.getvalue()


def write(root, *names, each=5):
    """Pictures in each of these folders, ``each`` or as many as stand behind a star: ``a/b*3``."""
    for name in names:
        folder, _, count = name.partition("*")
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(int(count or each)):
            (root / folder / f"{i}.png").write_bytes(picture())
    return root


def pack(root):
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    return root.with_suffix(".zip")


def sizes(splits):
    return [len(part) for part in (splits.train, splits.val, splits.test)]


NAMES = {
    "train": """train, TRAIN, Training, trn, train_set, Training-Set, trainset, training data, train.images,
        train2017, train_64x64, TrainImages, train_signs, 0_train, 训练, 训练集, 训练数据集, 訓練集""",
    "val": """val, VAL, valid, Validation, validation_set, dev, devset, eval, val_images, val2017,
        验证集, 验证, 驗證集, 校验集""",
    "test": """test, Test, testing, TESTING, test_set, tst, testset, test1, test-images, test_signs, holdout,
        test (1), 测试集, 测试, 測試集""",
    None: """cat, trainer, testament, contest, value, latest, train_val, images, 64x64,
        express train, 1, 训""",
}


@pytest.mark.parametrize("part", NAMES)
def test_the_names_of_parts(part):
    for name in re.split(r",\s+", NAMES[part]):
        assert part_of(name) == part, name


def test_what_all_names_share_does_not_count():
    assert parts_of(["seg_train", "seg_test"]) == {"seg_train": "train", "seg_test": "test"}
    assert parts_of(["hands train", "hands val", "hands test"]).keys() == {
        "hands train",
        "hands val",
        "hands test",
    }
    assert parts_of(["train", "car", "bus"]) == {"train": "train"}
    assert parts_of(["seg_train"]) == {}
    assert parts_of(["train", "train_set"]) == {"train": "train", "train_set": "train"}


def test_class_names_match_by_case_and_composed_letters_and_never_two_at_once():
    assert matching(["Cafe\u0301", "DOG", "x"], ["Café", "dog"]) == {"Cafe\u0301": "Café", "DOG": "dog"}
    assert matching(["cat", "CAT"], ["Cat", "cat"]) == {"cat": "cat"}


@pytest.mark.parametrize("around", ["", "SIGNS dataset", "a/b c/d"])
@pytest.mark.parametrize(
    "train, val, test",
    [
        ("Training", None, "Testing"), ("Train", None, "Test"), ("TRAIN", "VAL", "TEST"),
        ("seg_train", None, "seg_test"), ("training_set", None, "test_set"),
        ("train_signs", "val_signs", "test_signs"), ("训练集", "验证集", "测试集"),
        ("train", "valid", "test"), ("train", "dev", "test"), ("hands-train", "hands-valid", "hands-test"),
    ],
)  # fmt: skip
def test_parts_are_known_by_their_names_with_folders_around(tmp_path, around, train, val, test):
    root = tmp_path / "set"
    inside = root / around
    write(inside, *(f"{part}/{label}" for part in (train, val, test) if part for label in ("cat", "dog")))
    for path in (root, pack(root)):
        splits = data.load(path)
        assert splits.train.classes == ("cat", "dog")
        assert sizes(splits) == ([10, 10, 10] if val else [8, 2, 10])
        assert all(f"{test}/" in name for name in splits.test.names)


def test_a_part_in_a_folder_of_its_own_name_is_found(tmp_path):
    """As Kaggle unpacks "Intel image classification"; the pictures to be predicted are left out in words."""
    write(tmp_path, "seg_train/seg_train/sea", "seg_train/seg_train/ice", "seg_test/seg_test/sea*2")
    write(tmp_path, "seg_pred/seg_pred*3")
    with pytest.warns(
        UserWarning, match="3 unlabelled pictures have no labels and are left out. `minires predict`"
    ):
        splits = data.load(tmp_path)
    assert splits.train.classes == ("ice", "sea") and sizes(splits) == [8, 2, 2]


@pytest.mark.parametrize("flat", ["test", "test/test", "test/images", "test/unknown"])
def test_a_part_without_labels_does_not_stop_training(tmp_path, flat):
    write(tmp_path, "train/cat*10", "train/dog*10", "valid/cat*2", "valid/dog*2", f"{flat}*7")
    with pytest.warns(
        UserWarning, match="7 test pictures have no labels and are left out; a part test is split off"
    ):
        splits = data.load(tmp_path)
    assert sizes(splits) == [16, 4, 4]
    assert all(name.startswith("train/") for name in splits.test.names)
    with pytest.warns(UserWarning):
        assert data.load(tmp_path).test.names == splits.test.names


def test_folders_that_hold_the_same_folders_are_never_classes(tmp_path):
    write(tmp_path, "monday/cat", "monday/dog", "tuesday/cat", "tuesday/dog", "tuesday/cow")
    with pytest.raises(DataError, match=r"monday and tuesday hold folders of the same names \(cat, dog\)"):
        data.load(tmp_path)


def test_folders_within_classes_are_no_matter_where_they_differ_or_hold_pictures_beside(tmp_path):
    write(tmp_path / "a", "cat/images", "dog/images")
    write(tmp_path / "b", "cat", "cat/old", "cat/new", "dog", "dog/old", "dog/new")
    write(tmp_path / "c", "cat/tom", "cat/kit", "dog/rex")
    for name, count in (("a", 10), ("b", 30), ("c", 15)):
        splits = data.load(tmp_path / name)
        assert splits.train.classes == ("cat", "dog") and sum(sizes(splits)) == count


def test_parts_within_classes_are_parts(tmp_path):
    write(tmp_path, "cat/train", "cat/test*1", "dog/train", "dog/test*2")
    with pytest.warns(UserWarning, match="each class folder holds test, train: these are taken for parts"):
        splits = data.load(tmp_path)
    assert sizes(splits) == [8, 2, 3] and splits.test.classes == ("cat", "dog")
    assert splits.test.labels.tolist() == [0, 1, 1]


def test_names_of_parts_and_classes_at_once_are_refused(tmp_path):
    write(tmp_path, "trainA", "trainB", "testA", "testB", "samples")
    with pytest.raises(
        DataError, match="testA, testB, trainA, trainB are named for parts and classes at once"
    ):
        data.load(tmp_path)


def test_sets_beside_each_other_are_no_classes(tmp_path):
    write(
        tmp_path,
        *(f"{one}/{part}/{label}" for one in ("s1", "s2") for part in ("train", "test") for label in "ab"),
    )
    with pytest.raises(DataError, match="s1 holds test, train, .*like parts, and s1 stands beside s2: is s1"):
        data.load(tmp_path)


def test_a_class_may_have_a_name_that_says_nothing(tmp_path):
    write(tmp_path, "train/photo", "train/drawing", "test/photo*3")
    assert data.load(tmp_path).test.labels.tolist() == [1, 1, 1]


def test_one_class_with_a_number_for_a_name_is_one_to_be_tested(tmp_path):
    write(tmp_path, "test/0")
    assert data.load_part(tmp_path).pictures.classes == ("0",)


def test_lists_beside_folders_of_pictures_do_not_matter(tmp_path):
    write(tmp_path, "images/train/a", "images/train/b", "images/val/a*1")
    for name in (
        "labels/train/0.txt",
        "labels/val/0.txt",
        "images/train/a/0.png:Zone.Identifier",
        "classes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("0 0.5 0.5 1 1")
    splits = data.load(tmp_path)
    assert splits.train.classes == ("a", "b") and sizes(splits) == [8, 1, 2]


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, "bus", "car", "train")
    assert data.load(tmp_path).train.classes == ("bus", "car", "train")


def test_flat_parts_are_not_taken_for_classes(tmp_path):
    write(tmp_path, "train", "test")
    with pytest.raises(
        DataError, match="the pictures in train/, test/ have no labels: they stand in no class folders"
    ):
        data.load(tmp_path)


def test_two_folders_of_one_part_are_taken_together_in_words(tmp_path):
    write(tmp_path, "train/a", "train/b", "val/a*1", "valid/b*1", "test/a*1")
    with pytest.warns(UserWarning, match="val, valid are taken together for the part val"):
        assert data.load(tmp_path).val.names == ("val/a/0.png", "valid/b/0.png")


def test_classes_of_parts_are_a_set(tmp_path):
    write(tmp_path, "train/cat", "train/Dog", "test/dog*1", "val/Cat*2")
    splits = data.load(tmp_path)
    assert splits.test.labels.tolist() == [0] and splits.val.labels.tolist() == [1, 1]
    assert splits.test.classes == splits.train.classes == ("Dog", "cat")
    write(tmp_path, "test/cow*1")
    with pytest.raises(DataError, match=r"classes cow do not occur in train/ \(Dog, cat\)"):
        data.load(tmp_path)


def test_a_folder_without_pictures_beside_parts_is_no_matter(tmp_path):
    write(tmp_path, "pets/train/a", "pets/train/b", "pets/test/a*1")
    (tmp_path / "pets" / "labels").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "x.xml").write_text("<x>")
    assert data.load(tmp_path).train.classes == ("a", "b")


def test_the_raw_signs_are_found_below_their_parent_and_in_archives(tmp_path):
    root = tmp_path / "down" / "SIGNS dataset"
    for part, each in (("train", 10), ("test", 2)):
        (root / f"{part}_signs").mkdir(parents=True)
        for k in range(6):
            for i in range(each):
                kind = "jpg" if i else "png"
                Image.new("RGB", (20, 20), (40 * k, 0, 0)).save(
                    root / f"{part}_signs" / f"{k}_IMG_{i}.{kind}"
                )
    for path in (tmp_path / "down", root, pack(tmp_path / "down")):
        splits = data.load(path, size=8)
        assert sizes(splits) == [48, 12, 12] and splits.train.name == "signs"
        for part in (splits.train, splits.val, splits.test):
            assert np.abs(part.images[:, 4, 4, 0].astype(int) - 40 * part.labels).max() < 4
    for path in (root / "train_signs").iterdir():
        path.unlink()
    (root / "train_signs").rmdir()
    part = data.load_part(tmp_path / "down", size=8)
    assert (part.split, len(part.pictures), part.pictures.name) == ("test", 12, "signs")
    with pytest.raises(DataError, match="no folder train_signs: `minires evaluate` can use the rest"):
        data.load(tmp_path / "down", size=8)


def test_folders_named_like_those_of_signs_may_hold_classes(tmp_path):
    write(tmp_path, "train_signs/stop", "train_signs/yield", "test_signs/stop*1")
    splits = data.load(tmp_path)
    assert splits.train.classes == ("stop", "yield") and sizes(splits) == [8, 2, 1]


def test_the_order_and_the_split_are_those_of_always(tmp_path):
    """What a run was trained on must be the same pictures after an update."""
    write(tmp_path, "b*6", "a*6")
    splits = data.load(tmp_path, seed=5)
    whole = [f"{label}/{i}.png" for label in "ab" for i in range(6)]
    assert splits.train.names == tuple(name for name in whole if name in splits.train.names)
    assert (splits.test.names, splits.val.names) == (("a/5.png", "b/2.png"), ("a/0.png", "b/3.png"))
    assert sorted(splits.train.names + splits.val.names + splits.test.names) == whole


def test_what_is_no_regular_file_in_a_set_is_named(tmp_path):
    write(tmp_path, "a", "b")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "b" / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "b" / "empty.jpg").mkdir()
    with pytest.raises(DataError, match="3 unreadable pictures") as caught:
        data.load(tmp_path)
    for words in (
        "a/pipe.jpg: this is a pipe",
        "b/gone.jpg: a link to nowhere",
        "b/empty.jpg: this is a folder",
    ):
        assert words in str(caught.value)


def test_a_part_is_chosen_and_its_classes_are_numbered_as_asked(tmp_path):
    write(tmp_path, "dog*2", "cat*1")
    part = data.load_part(tmp_path)
    assert part.split == "all" and part.pictures.with_classes(("dog", "cat")).labels.tolist() == [1, 0, 0]
    assert part.pictures.with_classes(("dog", "bat", "cat")).labels.tolist() == [2, 0, 0]
    with pytest.raises(DataError, match="has dog among its classes, which are not among cat"):
        part.pictures.with_classes(("cat",))
    with pytest.raises(DataError, match="no labels"):
        data.load_part(tmp_path / "dog")
    write(tmp_path / "parts", "test/dog*1", "val/dog*2")
    with pytest.raises(DataError, match="there is no part train; there is val and test"):
        data.load_part(tmp_path / "parts", "train")
    assert len(data.load_part(tmp_path / "parts", "all").pictures) == 3
    one = write(tmp_path / "one", "only")
    assert data.load_part(one).pictures.classes == ("only",)


def test_warnings_are_given_once_or_not_at_all(tmp_path):
    write(tmp_path, "train/a", "train/b", "val/a", "val/b", "test/a", "test/b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sizes(data.load(tmp_path)) == [10, 10, 10]


@pytest.mark.parametrize(
    "names, words",
    [
        # as Kaggle unpacks "Natural images"
        (("data/all/car", "data/all/cat", "all/car", "all/cat"), r"data holds .* beside it \(all\)"),
        (("rose", "daisy", "flowers/rose", "flowers/daisy"), r"flowers holds .* \(daisy, rose\)"),
        (("Rose", "daisy", "flowers/rose", "flowers*9"), r"flowers holds .* \(Rose\)"),
        (("amazon/images/bag", "amazon/images/bike", "dslr/images/bag", "dslr/images/bike"),
         r"amazon and dslr .* \(bag, bike\)"),
        (("p/train/a/cat", "p/train/a/dog", "p/train/b/cat", "p/train/b/dog", "p/test/a/cat"),
         r"a and b .* \(cat, dog\)"),
        (("fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog", "fold1*1"), r"fold1 and fold2 .* \(cat, dog\)"),
        (("a/cat", "a/dog", "b/cat", "b/cow"), r"a and b .* \(cat\)"),
        (("train/cat", "train/dog", "train/copy/cat", "test/cat"), r"copy holds .* \(cat\)"),
        (("data/train/cat", "data/train/dog", "data/test/cat", "results"), "data holds .*beside results"),
        (("data/train/cat", "data/test/cat", "backup/old"), "data holds test, train, which .*give its path"),
        (("cat/train", "cat/test", "dog/train", "dog/test", "cat*4", "dog*4"), "cat holds test, tr"),
        (("data/cat", "data/dog", "figures", "old"), r"data holds folders \(cat, dog\) .* figures, old"),
        (("images/cat", "images/dog", "test"), r"images holds folders \(cat, dog\) .*its path"),
        (("lernen/cat", "lernen/dog", "pruefen"), r"lernen holds folders \(cat, dog\) .*call parts train"),
        (("lernen/cat", "lernen/dog", "lernen*2", "pruefen/Cat", "pruefen/dog"), "lernen and pruefen hold"),
        (("a/cat*1", "a*1", "a/dog*1", "b/cat*1", "b/dog*1"), r"a and b .* \(cat, dog\)"),
        (("a/cat", "a/dog", "b/Cat", "b/emu"), r"a and b .* \(cat\)"),
        (("a/cat", "b/cat", "b/dog"), r"a and b .* \(cat\)"),
        (("images", "annotations/trimaps"), "annotations stands beside images: .*no class of its own"),
        (("COVID/images", "COVID/masks", "ok/images", "ok/masks"), "COVID/masks stands beside images"),
        (("Images/n1-fox", "Images/n2-cat", "Annotation/n1-fox"), "Annotation stands beside Images"),
        (("images", "mask"), "mask stands beside images"),
        (("images", "image_masks"), "image_masks stands beside images"),
        (("png_images", "png_masks"), "png_masks stands beside png_images"),
        (("cell_images", "cell_masks", "cell_segmentation_masks"), "cell_masks stands beside cell_images"),
        (("images/cat", "images/dog", "images*1", "figures"), r"images holds folders \(cat, dog\) .*figures"),
        (("train/images/cat", "train/images/dog", "train/images*1", "train/x"), "train/images holds folders"),
        (("good", "defect/dent", "defect/scratch", "defect*1"), r"defect holds folders \(dent, scratch\)"),
        (("Training/a", "Training/b", "extra/x"), r"Training holds folders \(a, b\) and stands beside extra"),
        (("images_001/images", "images_002/images"), "of images_001, images_002 only the numbers differ"),
        (("HAM10000_images_part_1", "HAM10000_images_part_2"), "numbers differ: .*call their folders"),
        (("part1", "part2", "part10"), "of part1, part10, part2 only the numbers differ"),
        (("New folder", "New folder (2)"), "only the numbers differ"),
    ],
)  # fmt: skip
def test_what_holds_the_classes_is_never_taken_for_one(tmp_path, names, words):
    with pytest.raises(DataError, match=words):
        data.load(write(tmp_path, *names))


@pytest.mark.parametrize("weak", ["te", "valid", "dev", "evaluation"])
def test_a_class_whose_name_may_be_a_parts_is_no_part_and_is_evaluated(tmp_path, weak):
    write(tmp_path, "hi", "ta", weak)
    classes = tuple(sorted(["hi", "ta", weak]))
    with pytest.warns(UserWarning, match=f"{weak}, beside hi, ta, is taken for a class by its place"):
        assert data.load(tmp_path).train.classes == classes
    with pytest.warns(UserWarning, match="is taken for a class by its place"):
        assert data.load_part(tmp_path).pictures.classes == classes


def test_what_is_left_out_of_classes_to_be_tested_is_said(tmp_path):
    write(tmp_path, "cat", "dog", "test*3")
    with pytest.warns(UserWarning, match="3 test pictures have no labels and are left out"):
        assert len(data.load_part(tmp_path).pictures) == 10


def test_pictures_beside_two_parts_are_left_out_in_words_and_classes_beside_them_refused(tmp_path):
    write(tmp_path, "Train/0", "Train/1", "Test/0*2", "Test/1*2", "Meta*3")
    with pytest.warns(UserWarning, match="Meta beside Test, Train: the pictures there are of no"):
        assert sizes(data.load(tmp_path)) == [8, 2, 4]
    write(tmp_path, "extra/0", "extra/1")
    with pytest.raises(DataError, match="Meta, extra beside Test, Train: use either class folders or"):
        data.load(tmp_path)
    write(tmp_path / "one", "train/0", "train/1", "cat", "test")
    with pytest.raises(DataError, match="cat beside test, train: use either"):
        data.load(tmp_path / "one")


def test_one_class_of_several_in_folders_is_one_class_in_words(tmp_path):
    write(tmp_path, "cat/tom", "cat/kit", "dog", "cow")
    with pytest.warns(UserWarning, match=r"not told apart: all in cat \(kit, tom\) is of the class cat$"):
        assert data.load(tmp_path).train.classes == ("cat", "cow", "dog")


def said_of(*names):
    """What is warned of where pictures stand in these folders."""
    entries = [Entry((*name.split("/"), f"{i}.png"), bytes) for name in names for i in range(2)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        layout(entries, "set")
    return [str(one.message).removeprefix("set: ") for one in said]


@pytest.mark.parametrize(
    "names, words",
    [
        ("pets/images/cat pets/images/dog plants/images/rose", "all in pets (cat, dog) is of the class pets"),
        ("pets/x/cat pets/x/dog cars/x", "all in pets (x/cat, x/dog) is of the class pets"),
        ("pets/cat plants/images/rose plants/images/fern cars/a", "all in plants (fern, rose) is of"),
        ("cat cat/old dog dog/new", "all in cat (old) is of the class cat; the same in 1 other class"),
        ("top/pets/x top/pets/y top/cars top/b", "all in top/pets (x, y) is of the class pets"),
    ],
)
def test_folders_that_are_merged_are_named_however_deep_they_stand(names, words):
    (said,) = said_of(*names.split())
    assert said.startswith(f"folders in class folders are not told apart: {words}")


@pytest.mark.parametrize(
    "names",
    [
        "cat/cat dog/Dog bird", "cat/tom dog/rex", "cat/images cat dog",
        "0 1 9", "n01440764 n02102040", "class_1 class_2", "c0 c9", "00000 00042",
        "steel_part_1 steel_part_2", "labels photos plates", "gt photo suv", "with_mask without_mask",
        "face face_mask",
    ],
)  # fmt: skip
def test_plain_classes_are_taken_without_a_word(names):
    assert said_of(*names.split()) == []


@pytest.mark.parametrize(
    "names", ["en/a tr/b hi/c", "en/a tr/b te/c hi/d", "valid/a invalid/b", "dev/a prod/b"]
)
def test_classes_whose_names_may_be_those_of_parts_may_hold_folders(names):
    (said,) = said_of(*names.split())
    assert "is taken for a class by its place" in said


@pytest.mark.parametrize("names", ["pictures/cat pictures/dog test", "cat dog unknown/birds unknown/fish"])
def test_what_is_refused_is_not_said_to_be_taken(names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="are the folders in it the classes"):
            said_of(*names.split())


def test_class_names_have_no_space_around_them(tmp_path):
    write(tmp_path, "cat ", "dog")
    assert data.load(tmp_path).train.classes == ("cat", "dog")
    write(tmp_path, "cat")
    with pytest.raises(DataError, match="two class folders are called 'cat', but for the space around"):
        data.load(tmp_path)
    write(tmp_path / "b", " ", "dog")
    with pytest.raises(DataError, match="a class folder is called ' '"):
        data.load(tmp_path / "b")


def test_folders_that_may_be_the_classes_are_merged_in_words(tmp_path):
    write(tmp_path / "a", "animal/cat", "animal/dog", "vehicle/car", "vehicle/bus")
    said = r"all in animal \(cat, dog\) is of the class animal; the same in 1 other class$"
    with pytest.warns(UserWarning, match=said):
        assert data.load(tmp_path / "a").train.classes == ("animal", "vehicle")
    write(tmp_path / "b", "photos/cat", "more photos/dog")
    with pytest.warns(UserWarning, match=r"all in photos \(cat\) is of the class photos$"):
        assert len(data.load(tmp_path / "b").train.classes) == 2


def test_classes_with_names_of_parts_and_something_else_are_classes(tmp_path):
    write(tmp_path, "train station", "test tube", "cat")
    assert data.load(tmp_path).train.classes == ("cat", "test tube", "train station")


def test_folders_of_one_part_in_each_class_are_no_parts(tmp_path):
    write(tmp_path, "cat/train", "dog/train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = data.load(tmp_path)
    assert splits.train.classes == ("cat", "dog") and sizes(splits) == [6, 2, 2]


def test_a_class_and_a_part_without_labels_are_two_classes(tmp_path):
    write(tmp_path, "cat", "test")
    with pytest.warns(UserWarning, match="test, beside cat, is taken for a class by its place"):
        assert data.load(tmp_path).train.classes == ("cat", "test")


def test_a_class_that_is_taken_for_a_part_can_be_kept(tmp_path):
    write(tmp_path, "homework", "exam", "test")
    with pytest.warns(UserWarning, match="if they are a class, give their folder another name"):
        assert data.load(tmp_path).train.classes == ("exam", "homework")


def test_folders_in_a_part_may_be_called_like_one_part(tmp_path):
    """One name of a part in a class is as any other, two are parts; those around the set do not count."""
    write(tmp_path, "cat/test2", "cat/test", "dog/a")
    with pytest.warns(UserWarning, match="are not told apart"):
        assert data.load(tmp_path).train.classes == ("cat", "dog")
    write(tmp_path / "around", "test/train/cat", "test/train/dog", "test/test/cat*2")
    assert sizes(data.load(tmp_path / "around")) == [8, 2, 2]


def test_documents_and_weights_beside_folders_are_no_pictures(tmp_path):
    write(tmp_path, "set/cat", "set/dog")
    for name in ("licence.pdf", "set/show.m", "COVID.metadata.xlsx", "models/s1.pth", "x.docx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match="folders that hold lists and no picture are left out: models"):
        assert data.load(tmp_path).train.classes == ("cat", "dog")


@pytest.mark.parametrize("inner", ["images", "photos", "session", "session/raw", "1", "images/2024"])
def test_one_folder_in_each_class_is_no_matter(tmp_path, inner):
    assert data.load(write(tmp_path, f"1/{inner}", f"2/{inner}")).train.classes == ("1", "2")


@pytest.mark.parametrize("part, split_off", [("test", True), ("Val", True), ("unlabelled", False)])
def test_a_flat_folder_of_a_parts_name_beside_classes_is_left_out_in_words(tmp_path, part, split_off):
    write(tmp_path, "cat", "dog", f"{part}*3")
    words = f"3 {part.lower()} pictures have no labels and are left out"
    with pytest.warns(UserWarning, match=words) as said:
        splits = data.load(tmp_path)
    assert ("split off train" in str(said[0].message)) == split_off
    assert splits.train.classes == ("cat", "dog") and sum(sizes(splits)) == 10


@pytest.mark.parametrize("name", ["unsorted", "Unknown", "train"])
def test_a_folder_that_may_be_no_class_is_one_with_a_warning(tmp_path, name):
    write(tmp_path, "cat", "dog", name)
    with pytest.warns(UserWarning, match=f"{name}, beside cat, dog, is taken for a class by its place"):
        assert set(data.load(tmp_path).train.classes) == {"cat", "dog", name}


@pytest.mark.parametrize("around", [".", "CUB"])
def test_folders_that_hold_only_lists_beside_those_of_pictures_count_as_nothing(tmp_path, around):
    write(tmp_path / around, "images/001.Black", "images/002.Lay", "parts/more*0", "labels*0")
    for name in ("parts/parts.txt", "parts/more/a.csv", "labels/imdb.mat", "images.txt"):
        (tmp_path / around / name).write_text("1 2 3")
    with pytest.warns(UserWarning, match="hold lists and no picture are left out: .*labels, .*parts$"):
        assert data.load(tmp_path).train.classes == ("001.Black", "002.Lay")


def test_a_class_folder_that_holds_only_a_list_is_still_an_empty_class(tmp_path):
    write(tmp_path, "cat", "dog", "cow*0")
    (tmp_path / "cow" / "notes.txt").write_text("none yet")
    with pytest.raises(DataError, match="class folders with no picture; fill or remove them:\n  cow"):
        data.load(tmp_path)


def test_a_test_part_alone_is_of_one_class_when_its_folder_holds_one(tmp_path):
    write(tmp_path, "test/cat/tom*3")
    found = data.load_part(tmp_path)
    assert found.pictures.classes == ("cat",) and len(found.pictures) == 3


@pytest.mark.parametrize(
    "files, said",
    [
        (
            ["train/1.png", "train/_classes.csv", "test/2.png"],
            "labels in lists, such as train/_classes.csv, are",
        ),
        (
            ["train/images/1.png", "train/labels/1.txt", "valid/images/2.png"],
            "such as train/labels/1.txt, are",
        ),
        (
            ["cat.0.png", "cat.1.png", "dog.0.png", "dog.1.png"],
            "names of files, such as cat.0.png, are not taken",
        ),
        (["images/1.png", "images/2.png", "labels/1.txt"], "in lists, such as labels/1.txt, are not read"),
        (["dvc/train/1.png", "dvc/test1/1.png"], "the pictures in train/, test1/ have no labels"),
        (["1.png", "2.png", "README.txt"], "class/picture.jpg; `minires predict` says what is on pictures"),
        (["IMG_1.png", "IMG_2.png"], "class/picture.jpg; `minires predict` says what is on pictures"),
    ],
)
def test_where_labels_are_missing_the_next_step_is_said_by_all_in_the_same_words(tmp_path, files, said):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture() if name.endswith("png") else b"text")
    for reader in (data.load, data.load_part, data.survey):
        with pytest.raises(DataError, match="have no labels: they stand in no class folders") as caught:
            reader(tmp_path)
        assert said in str(caught.value)


def test_what_is_neither_a_name_nor_a_path_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for reader in (data.load, data.survey):
        with pytest.raises(UnknownName, match="no file or folder sings here, and unknown"):
            reader("sings")


def test_one_picture_without_a_label_is_one(tmp_path):
    write(tmp_path, "train/a*10", "train/b*10", "test*1")
    with pytest.warns(UserWarning, match="1 test picture has no label and is left out; a part test is split"):
        data.load(tmp_path)


def test_what_is_left_out_is_said_once_by_a_survey(tmp_path):
    write(tmp_path, "train/a*10", "train/b*10", "test*1")
    with pytest.warns(UserWarning) as said:
        data.survey(tmp_path)
    assert ["a part test is split off train" in str(one.message) for one in said] == [True]


def test_hdf5_among_pictures_is_none_and_a_set_without_pictures_says_what_is_there(tmp_path):
    write(tmp_path / "a", "cat", "dog")
    (tmp_path / "a" / "set.h5").write_bytes(b"x")
    (tmp_path / "a" / "cat" / "set.hdf5").write_bytes(b"x")
    assert data.load(tmp_path / "a").train.classes == ("cat", "dog")
    (tmp_path / "b" / "data").mkdir(parents=True)
    (tmp_path / "b" / "README.md").write_text("about")
    for name, content, words in (
        ("x.tfrecord", b"x", "is by its name no picture"),
        ("x.parquet", b"PAR1", "is a Parquet file"),
        ("x.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    ):
        (tmp_path / "b" / "data" / name).write_bytes(content)
        for reader in (data.load, data.load_part, data.survey, data.pictures_at):
            with pytest.raises(DataError, match=f"no picture found.*; data/{name} {words}"):
                reader(tmp_path / "b")
        (tmp_path / "b" / "data" / name).unlink()

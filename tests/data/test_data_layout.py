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
from minires.data.parts import matching, part_of, parts_of
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
    write(tmp_path, "trainA", "trainB", "testA", "testB")
    with pytest.raises(
        DataError, match="testA, testB, trainA, trainB are named for parts and classes at once"
    ):
        data.load(tmp_path)


def test_sets_beside_each_other_are_no_classes(tmp_path):
    write(
        tmp_path,
        *(f"{one}/{part}/{label}" for one in ("s1", "s2") for part in ("train", "test") for label in "ab"),
    )
    with pytest.raises(DataError, match=r"s1 and s2 hold folders of the same names \(test, train\)"):
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

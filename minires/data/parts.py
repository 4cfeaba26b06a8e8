"""What the folders of a data set are called: parts by their many names, classes written in several ways.

    train   train, training, trn, trainset, train_set, training_images, train_signs, train2017, 训练集, ...
    val     val, valid, validation, dev, eval, val_set, 验证集, ...
    test    test, testing, tst, test_set, holdout, 测试集, ...

Large and small letters are one; ``-``, ``_``, a point and a space separate words; what all of them have in
common does not count (``seg_train``, ``seg_test``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable

PARTS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # pictures to be predicted; not a part
UNSORTED = {"unsorted", "unclassified", "uncategorised", "uncategorized", "unknown", "未分类"}
_WORDS = {
    "train": {
        "train", "training", "trn", "tr", "tra", "trainval", "learn", "learning",
        "训练", "訓練", "训练验证", "学習", "entrenamiento", "entrainement",
    },
    "val": {
        "val", "valid", "validation", "validate", "validating", "vali", "dev", "development",
        "eval", "evaluation",
        "验证", "驗證", "校验", "评估", "开发", "検証", "评价",
    },
    "test": {
        "test", "testing", "tests", "tst", "te", "holdout", "heldout",
        "测试", "測試", "テスト", "检验", "prueba",
    },
    UNLABELLED: {"pred", "predict", "prediction", "unlabelled", "unlabeled", "nolabel", "nolabels", "预测"},
}  # fmt: skip
# Of these the words that by themselves may as well be a class: the languages te and tr, a valid ticket.
_WEAK = {
    "tr", "tra", "trn", "te", "tst", "vali", "valid", "validate", "validating", "dev", "development", "eval",
    "evaluation", "learn", "learning", "training", "testing", "prediction", "prueba",
    "评估", "开发", "评价", "检验",
}  # fmt: skip
# Words that may stand beside these, and say nothing.
_SAYING_NOTHING = {
    "set", "sets", "data", "dataset", "images", "image", "imgs", "img", "pictures", "picture", "pics", "pic",
    "photos", "photo", "signs", "samples", "split", "folder", "dir", "files", "part", "jpg", "jpeg", "png",
    "raw", "the",
    "集", "数据", "数据集", "數據", "图片", "图像", "圖片", "样本", "データ", "画像", "セット",
}  # fmt: skip
_GLUED = sorted(_SAYING_NOTHING - {"the", "part", "dir", "raw"}, key=len, reverse=True)
_KNOWN = {word: part for part, words in _WORDS.items() for word in words}


def fold(name: str) -> str:
    """A name without what two systems write in two ways: case, composed letters, spaces around it.

    >>> fold("Cafe\\u0301 ") == fold("CAF\\u00c9")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold()).strip()


def part_of(name: str, *, besides: Collection[str] = ()) -> str | None:
    """The part that a folder of this name is: train, val, test, or None; ``besides`` are words not to count.

    >>> part_of("Training_set"), part_of("VALID"), part_of("test-images"), part_of("测试集"), part_of("cat")
    ('train', 'val', 'test', 'test', None)
    """
    found = {_word(word) for word in words_of(name) if word not in besides}
    found.discard("")
    return found.pop() if len(found) == 1 else None  # None for an unknown word, or two parts


def parts_of(names: Iterable[str]) -> dict[str, str]:
    """The part of each folder, of those that are one by their names.

    >>> parts_of(["seg_train", "seg_test", "cat"])
    {}
    >>> parts_of(["seg_train", "seg_test"])
    {'seg_train': 'train', 'seg_test': 'test'}
    """
    names = list(names)
    shared = set.intersection(*(set(words_of(name)) for name in names)) if len(names) > 1 else set()
    found = {name: part_of(name, besides=shared - _KNOWN.keys()) for name in names}
    return {name: part for name, part in found.items() if part is not None}


def says_nothing(name: str) -> bool:
    """Whether a folder's name is neither a class nor a part: ``images``, ``data``, ``unknown``."""
    words = words_of(name)
    return bool(words) and all(word in _SAYING_NOTHING or word == "unknown" for word in words)


def is_weak(name: str) -> bool:
    """Whether the name of a part may as well be that of a class, where only classes stand beside it.

    >>> is_weak("te"), is_weak("valid"), is_weak("test"), is_weak("valid_set")
    (True, True, False, False)
    """
    return {*words_of(name)} <= _WEAK


def mixed(names: Collection[str]) -> list[str]:
    """Those names that say a part, and of what, which another says of another part: a class for each part.

    >>> mixed(["trainA", "testA", "trainB", "notes"]), mixed(["train station", "test tube"])
    (['testA', 'trainA'], [])
    """
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        words = words_of(name)
        parts = [part for word in words if (part := _word(word)) in PARTS]
        if len(parts) == 1 and (rest := tuple(word for word in words if _word(word) is None)):
            found.setdefault(rest, {})[name] = str(parts[0])
    return sorted(name for named in found.values() if len({*named.values()}) > 1 for name in named)


def words_of(name: str) -> list[str]:
    """The words of a folder's name, in small letters, without numbers and sizes."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # TrainImages
    words = re.split(r"[\s_.()\[\]-]+", fold(apart))
    return [word for word in words if word and not re.fullmatch(r"v?\d+(x\d+)?(px)?", word)]


def matching(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """For each of ``names`` the one of ``known`` that is written the same, or the same but for case and the
    like; those that have none, or several, are missing.

    >>> matching(["Dog", "cat", "cow"], ["cat", "dog"])
    {'Dog': 'dog', 'cat': 'cat'}
    """
    folded: dict[str, list[str]] = {}
    for name in known:
        folded.setdefault(fold(name), []).append(name)
    found = {}
    for name in names:
        alike = [name] if name in known else folded.get(fold(name), [])
        if len(alike) == 1:
            found[name] = alike[0]
    return found


def _word(word: str) -> str | None:
    """The part that a word means, "" if it says nothing, None if it is unknown."""
    word = re.sub(r"\d+$", "", word)  # train2017
    if not word or word in _SAYING_NOTHING:
        return ""
    if word in _KNOWN:
        return _KNOWN[word]
    for end in _GLUED:  # trainset, 训练集
        if word.endswith(end) and (part := _KNOWN.get(word.removesuffix(end))):
            return part
    return None

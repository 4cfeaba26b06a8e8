"""What the page asks about pictures, answered by a trained model as plain data for JSON."""

from __future__ import annotations

import base64
import io
import itertools
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from minires import backend
from minires.debug.cam import activation_maps, overlay
from minires.debug.trace_page import trace_html
from minires.errors import ConfigError, DataError, MiniresError
from minires.nn.intervene import Words, intervene
from minires.plan import planned
from minires.play.decoder import Decoder
from minires.play.gallery import Gallery
from minires.train import load_model, predict

KEPT = 8  # pictures, as the network saw them, that can be asked about again
THUMBNAIL = 128  # pixels of a side
FIRST = 5  # pictures of a folder, of which one must be readable


class Player:
    """A trained model that is asked from many threads and answers one question at a time.

    ``run`` is a run folder or a model.safetensors file; ``data`` a folder, zip, tar or picture file whose
    pictures can be asked about by their numbers. Nothing is written to disk; the last eight pictures are kept
    in memory. ``changes`` of the model (``minires.intervene``) hold until it is closed.

    Raises: CheckpointError if ``run`` is no trained model; ConfigError if it learnt from pictures that are
    not square, or there is no such device; DataError if there are no pictures at ``data``.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        *,
        device: str = "cpu",
        data: str | os.PathLike[str] | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.trained = load_model(run)
        high, wide = self.trained.size
        if high != wide:
            raise ConfigError(f"{run} learnt from pictures {high} high and {wide} wide; they must be square")
        self.gallery = Gallery(data, self.trained.classes) if data is not None else None
        self.trained.model.to(backend.choose_device(device))
        self._intervention = intervene(self.trained.model, changes or {})
        self._intervention.__enter__()
        self._scores = planned(self.trained.model, (1, high, wide, 3))  # the maps are the model's own
        self._lock = threading.Lock()  # one question at a time; pictures are decoded meanwhile
        self._decoder, self._thumbnails = Decoder(2), Decoder(1)
        self._pictures: dict[str, NDArray[np.uint8]] = {}  # oldest first
        self._numbers = itertools.count(1)

    def warm_up(self) -> None:
        """Answer once about a black picture, so that kernels are compiled before the first real one.

        Raises: DataError if none of the first pictures that are to be shown can be read.
        """
        unreadable = []
        for index in range(min(FIRST, len(self.gallery)) if self.gallery else 0):
            try:
                self.thumbnail(index)
                break
            except DataError as error:
                unreadable.append(error)
        else:
            if unreadable:
                raise unreadable[0]
        black = np.zeros((*self.trained.size, 3), np.uint8)
        self._answer(self._decoder.decode(_png(black), name="a black picture", size=len(black)))

    @property
    def changes(self) -> tuple[Words, ...]:
        """What is changed of the model."""
        return self._intervention.words

    def close(self) -> None:
        """End the processes that decode pictures, and the changes."""
        self._intervention.__exit__()
        self._decoder.close()
        self._thumbnails.close()

    def about(self) -> dict[str, Any]:
        """What the model is and which classes it knows."""
        trained, gallery = self.trained, self.gallery
        return {
            "model": trained.name, "dataset": trained.dataset, "classes": list(trained.classes),
            "side": trained.size[0],
            "changes": [{"en": one, "zh": one.chinese} for one in self.changes],
            "pictures": {"source": gallery.source, "count": len(gallery)} if gallery else None,
        }  # fmt: skip

    def guess(self, source: bytes) -> dict[str, Any]:
        """Say what is on a picture file: the probabilities of all classes, and the likeliest one's maps.

        The picture is decoded as ``minires predict`` does and kept under the name ``picture``.

        Raises: DataError if it cannot be read.
        """
        return self._guess(source, "the file sent")

    def pictures(self, start: int) -> dict[str, Any]:
        """Some of the pictures that can be asked about by number. Raises: DataError."""
        return self._gallery().page(start)

    def thumbnail(self, index: int) -> bytes:
        """A small PNG of such a picture: the middle of it, as the network sees it. Raises: DataError."""
        gallery = self._gallery()
        source, name = gallery.read(index), gallery.name(index)
        return _png(self._thumbnails.decode(source, name=name, size=THUMBNAIL))

    def guess_at(self, index: int) -> dict[str, Any]:
        """What :meth:`guess` says of such a picture, and the class its folder says. Raises: DataError."""
        gallery = self._gallery()
        answer = self._guess(gallery.read(index), gallery.name(index))
        return {**answer, "name": gallery.name(index), "class": gallery.label(index)}

    def _gallery(self) -> Gallery:
        if self.gallery is None:
            raise DataError("no pictures were given; start it as `minires play RUN --data FOLDER`")
        return self.gallery

    def _guess(self, source: bytes, called: str) -> dict[str, Any]:
        seen = self._decoder.decode(source, name=called, size=self.trained.size[0])
        with self._lock:
            answer = self._answer(seen)
            name = str(next(self._numbers))
            self._pictures[name] = seen
            for oldest in list(self._pictures)[:-KEPT]:
                del self._pictures[oldest]
        return {"picture": name, **answer}

    def maps(self, picture: str, label: int) -> dict[str, Any]:
        """The maps of any class on a picture that was asked about. Raises: DataError, ConfigError."""
        with self._lock:
            return self._maps(self._kept(picture), label)

    def trace(self, picture: str) -> bytes:
        """The page that steps through such a picture. Raises: DataError if it is no longer kept."""
        with self._lock:
            seen, trained = self._kept(picture), self.trained
            return trace_html(
                trained.model, trained.normalize(seen[None]), name=trained.name, classes=trained.classes,
                picture=seen,
            )  # fmt: skip

    def _kept(self, picture: str) -> NDArray[np.uint8]:
        if picture not in self._pictures:
            raise DataError(f"this picture is no longer kept, only the last {KEPT} are; show it again")
        return self._pictures[picture]

    def _answer(self, seen: NDArray[np.uint8]) -> dict[str, Any]:
        start = time.perf_counter()
        (probabilities,) = predict(self._scores, seen[None], self.trained.normalize)
        seconds = time.perf_counter() - start
        if not np.isfinite(probabilities).all():
            raise MiniresError("the model's scores are not finite numbers; train it again")
        label = int(probabilities.argmax())
        return {
            "seen": _data_url(seen), "seconds": seconds, "probabilities": probabilities.tolist(),
            "maps": self._maps(seen, label),
        }  # fmt: skip

    def _maps(self, seen: NDArray[np.uint8], label: int) -> dict[str, Any]:
        found = activation_maps(self.trained.model, self.trained.normalize(seen), label)
        return {
            "label": found.label, "score": found.scores[label],
            "picture_share": found.picture_share, "rest_share": found.rest_share,
            "stages": [
                {"name": stage.name, "size": list(stage.values.shape), "share": stage.share,
                 "positive": bool((stage.values > 0).any()),
                 "overlay": _data_url(overlay(seen, stage.values))}
                for stage in found.stages
            ],
        }  # fmt: skip


def _data_url(picture: NDArray[np.uint8]) -> str:
    return f"data:image/png;base64,{base64.b64encode(_png(picture)).decode()}"


def _png(picture: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()

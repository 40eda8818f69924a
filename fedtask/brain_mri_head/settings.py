"""The settings of the head task. What it shares with `brain_mri` has the same names and defaults there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedstream.schema import TaskMeaning
from fedtask.brain_mri.settings import HEAD, BrainMriSettings
from fedtask.settings import option, read_settings

IMAGENET = "imagenet"
RANDOM = "random"
NONE = "none"

_FILE_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LAST_CHANNELS = 1280
_WHOLE = BrainMriSettings()


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """The task's settings. All sites of a federation have the same ones."""

    classes: str = option(_WHOLE.classes, "the two class names, label 0 first")
    positive_class: str = option(_WHOLE.positive_class, "the class whose detection sensitivity speaks of")
    backbone: str = option(
        IMAGENET, "whose features are learned on: imagenet, random, sha256:HEX of a weights file, or none"
    )
    backbone_file: str = option("", "that weights file, on the coordinator's machine; sites need no backbone")
    features: int = option(0, "numbers per example with backbone=none; else what the backbone gives", low=0)
    alpha: float = option(_WHOLE.alpha, "width of MobileNetV2", low=0.1, high=2.0)
    image_size: int = option(_WHOLE.image_size, "side in pixels of what the backbone sees", low=32, high=1024)
    class_weights: str = option(
        _WHOLE.class_weights, "balanced: both classes count the same at each site", choices=("none", "balanced")
    )
    epochs: int = option(_WHOLE.epochs, "most local epochs of the default plan", low=1, high=10_000)
    batch_size: int = option(_WHOLE.batch_size, "batch size of the default plan", low=1, high=4096)
    learning_rate: float = option(_WHOLE.learning_rate, "of Adam, in the default plan", low=1e-8, high=1.0)
    adam_epsilon: float = option(_WHOLE.adam_epsilon, "of Adam; see brain_mri", low=1e-10, high=10.0)
    patience: int = option(
        _WHOLE.patience, "epochs without a better validation loss until a fine-tune stops; 0 for never", low=0
    )
    generated: int = option(200, "generated examples per site, with backbone=none and no file", low=8, high=1_000_000)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The two class names, label 0 first."""
        return tuple(name.strip() for name in self.classes.split(","))

    @property
    def num_features(self) -> int:
        """Numbers per example."""
        return self.features if self.backbone == NONE else backbone_features(self.alpha)

    @property
    def of_whole_model(self) -> dict[str, str]:
        """The settings of `brain_mri` whose head is meant."""
        names = ("classes", "positive_class", "alpha", "image_size")
        return {name: str(getattr(self, name)) for name in names} | {"fine_tune": HEAD, "augmentation": "0"}

    def meaning(self) -> TaskMeaning:
        """Classes, and in the preprocessing all that decides about features: also whose weights the backbone has."""
        steps = f"{self.features} numbers as they are"
        if self.backbone != NONE:
            size = self.image_size
            steps = f"rgb {size}x{size} bilinear; x / 127.5 - 1; MobileNetV2 alpha {self.alpha:g} of {self.backbone}"
            steps += "; mean over positions"
        return TaskMeaning(self.class_names, self.positive_class, steps)


def backbone_features(alpha: float) -> int:
    """Channels of MobileNetV2's last layer: 1280, and more for a width above 1, in steps of 8."""
    if alpha <= 1.0:
        return _LAST_CHANNELS
    wanted = _LAST_CHANNELS * alpha
    rounded = int(wanted + 4) // 8 * 8
    return rounded if rounded >= 0.9 * wanted else rounded + 8  # as Keras rounds, who takes it from TensorFlow's models


def read_head_settings(settings: Mapping[str, str]) -> HeadSettings:
    """The settings that `settings` gives as text, checked also against one another.

    Raises:
        ValueError: as `read_settings`, or two settings contradict each other.
    """
    chosen = read_settings(HeadSettings, settings)
    names = chosen.class_names
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise ValueError(f"setting classes is two different names with a comma between, not {chosen.classes!r}")
    if chosen.positive_class not in names:
        raise ValueError(f"setting positive_class is one of {', '.join(names)}, not {chosen.positive_class!r}")
    if chosen.backbone not in {IMAGENET, RANDOM, NONE} and not _FILE_DIGEST.fullmatch(chosen.backbone):
        raise ValueError(f"setting backbone is imagenet, random, none or sha256:HEX, not {chosen.backbone!r}")
    if (chosen.backbone == NONE) != bool(chosen.features):
        raise ValueError("setting features is the numbers per example with backbone=none, and left out otherwise")
    if chosen.backbone_file and not chosen.backbone.startswith("sha256:"):
        raise ValueError("setting backbone_file needs backbone=sha256:HEX; `fedclient features` prints it")
    return chosen

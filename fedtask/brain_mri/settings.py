"""The settings of the brain MRI task, and the preset of the demonstration on the phantom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedtask.settings import option, read_settings

HEAD = "head"
UPPER = "upper"
ALL = "all"

UPPER_LAYER = "block_12_add"
"""What `upper` stands for. Training from here on is 20 times as fast as training everything, since all below it is
computed once per image, and in one place it reaches the same accuracy; see docs/adr/0004-what-is-fine-tuned.md."""

_ADDING_BLOCKS = (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)
CUTS = tuple(f"block_{n}_add" if n in _ADDING_BLOCKS else f"block_{n}_project_BN" for n in range(1, 17))
"""The ends of MobileNetV2's blocks: the only layers through which everything passes, so that one can cut there."""


@dataclass(frozen=True, slots=True)
class BrainMriSettings:
    """The task's settings. All sites of a federation have the same ones."""

    classes: str = option("no,yes", "the two class names, label 0 first")
    positive_class: str = option("yes", "the class whose detection sensitivity speaks of")
    alpha: float = option(1.0, "width of MobileNetV2", low=0.1, high=2.0)
    image_size: int = option(224, "side in pixels of what the network sees", low=32, high=1024)
    fine_tune: str = option(
        UPPER,
        f"what is trained: the head alone, the upper part (behind {UPPER_LAYER}), all, or what is behind a block's end",
        choices=(HEAD, UPPER, ALL, *CUTS),
    )
    batch_norm: str = option(
        "frozen",
        "frozen: BatchNorm stays as it is, in inference mode; train: trained too, its statistics averaged like weights",
        choices=("frozen", "train"),
    )
    batch_norm_momentum: float = option(
        0.9, "of the moving statistics under batch_norm=train (Keras's 0.999 would hardly move)", low=0.0, high=0.9999
    )
    class_weights: str = option(
        "none", "balanced: both classes count the same at each site", choices=("none", "balanced")
    )
    augmentation: float = option(1.0, "strength of shifts, turns and brightness; 0 turns all of it off", low=0, high=2)
    variants: int = option(
        4, "augmented forms of an image that are kept, of which each epoch draws one", low=1, high=64
    )
    products: str = option(
        "auto",
        "of 1x1 convolutions in training; auto: bfloat16 if the processor is made for it and BatchNorm is frozen",
        choices=("auto", "float32", "bfloat16"),
    )
    dropout: float = option(0.2, "share of features dropped before the output", low=0.0, high=0.9)
    epochs: int = option(10, "most local epochs of the default plan", low=1, high=1000)
    batch_size: int = option(32, "batch size of the default plan", low=1, high=4096)
    learning_rate: float = option(1e-4, "of Adam, in the default plan", low=1e-8, high=1.0)
    adam_epsilon: float = option(
        1e-3,
        "of Adam: the size of gradient below which steps shrink with it (Keras's 1e-7 lets one-sided sites drift)",
        low=1e-10,
        high=10.0,
    )
    patience: int = option(
        2, "epochs without a better validation loss until a fine-tune stops; 0 for never", low=0, high=1000
    )
    phantom_images: int = option(600, "training images of the generated phantom, where there is no folder", low=8)
    phantom_difficulty: float = option(0.0, "of the phantom: 0 is plain, 1 is hard", low=0.0, high=1.0)
    phantom_seed: int = option(0, "seed of the phantom", low=0)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The two class names, label 0 first."""
        return tuple(name.strip() for name in self.classes.split(","))

    @property
    def cut(self) -> str | None:
        """The layer up to which everything is frozen; `None` if only the head is trained, or all of it."""
        if self.fine_tune in {HEAD, ALL}:
            return None
        return UPPER_LAYER if self.fine_tune == UPPER else self.fine_tune

    @property
    def num_variants(self) -> int:
        """Forms of an image that are kept: 1, the image itself, without augmentation."""
        return self.variants if self.augmentation else 1


def read_brain_mri_settings(settings: Mapping[str, str]) -> BrainMriSettings:
    """The settings that `settings` gives as text, checked also against one another.

    Raises:
        ValueError: as `read_settings`, or two settings contradict each other.
    """
    chosen = read_settings(BrainMriSettings, settings)
    names = chosen.class_names
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise ValueError(f"setting classes is two different names with a comma between, not {chosen.classes!r}")
    if chosen.positive_class not in names:
        raise ValueError(
            f"setting positive_class is one of the classes {', '.join(names)}, not {chosen.positive_class!r}"
        )
    return chosen


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings of the task with the number of rounds they were chosen for."""

    settings: Mapping[str, str]
    rounds: int
    clients: int
    division: str


DEMO = Preset(
    settings=MappingProxyType(
        {
            "alpha": "0.35",
            "image_size": "64",
            "fine_tune": "all",
            "batch_norm": "train",
            "augmentation": "0.4",
            "learning_rate": "0.002",
            "epochs": "5",
            "patience": "0",
            "phantom_images": "900",
        }
    ),
    rounds=5,
    clients=3,
    division="even",
)
"""The demonstration: a small network learns the phantom from random weights within minutes on two cores."""

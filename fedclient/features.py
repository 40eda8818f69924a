"""`fedclient features`: what the frozen backbone makes of a site's images, as files for the task brain_mri_head."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedclient.config import parse_classes, parse_data
from fedclient.exit_codes import ExitCode, Stop
from fedtask.settings import read_pairs
from fedtask.task import SiteOptions, TaskError


def make_features(
    data: str, classes: str | None, out: Path, backbone: str | None, task_set: Sequence[str]
) -> Iterator[str]:
    """Write `out` and its sibling in the other form; gives lines for people, the last the settings for the server.

    Raises:
        Stop: with `BAD_CONFIGURATION` or `BAD_DATA`; the message says what to change.
    """
    from fedtask.brain_mri_head.backbone import Backbone
    from fedtask.brain_mri_head.features import PLAIN, SAFETENSORS, write_features
    from fedtask.brain_mri_head.settings import read_head_settings
    from fedtask.images.site import list_train
    from fedtask.quiet_start import load_tensorflow_quietly

    try:
        settings = _backbone_settings(backbone) | read_pairs(task_set)
        head = read_head_settings(settings)
        chosen = Backbone(head)
        options = SiteOptions(_folder(data), _classes(classes))
    except ValueError as error:
        raise Stop(ExitCode.BAD_CONFIGURATION, str(error)) from error
    try:
        if options.folder is not None:  # what is wrong with it is said at once, not after the seconds of the next line
            list_train(options.folder, head.meaning().class_names, options.classes)
        load_tensorflow_quietly()
        features, summary = chosen.features_of(options)
        yield from summary.warnings
        stem = out.name.removesuffix(SAFETENSORS).removesuffix(PLAIN)  # of `site.v1`, all is its name
        for path in (out.with_name(f"{stem}{ending}") for ending in (SAFETENSORS, PLAIN)):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_features(features, path)
            yield f"wrote {path}: {len(features.train)} training and {len(features.val)} validation examples"
    except (TaskError, OSError) as error:
        raise Stop(ExitCode.BAD_DATA, str(error)) from error
    words = " ".join(f"--task-set {shlex.quote(f'{name}={value}')}" for name, value in settings.items())
    yield f"the coordinator's settings: --task brain_mri_head {words}".rstrip()


def _backbone_settings(backbone: str | None) -> dict[str, str]:
    """Settings for `--backbone-weights`: nothing for ImageNet by way of Keras, `random`, or a file of weights."""
    from fedtask.brain_mri_head.backbone import file_digest
    from fedtask.brain_mri_head.settings import RANDOM

    if backbone is None or backbone == RANDOM:
        return {"backbone": backbone} if backbone else {}
    path = Path(backbone)
    if not path.is_file():
        raise ValueError(f"there is no file {backbone}; --backbone-weights takes a file of weights, or {RANDOM!r}")
    return {"backbone": file_digest(path), "backbone_file": backbone}


def _folder(data: str) -> Path | None:
    parsed = parse_data(data)
    return None if parsed is None else Path(data)


def _classes(text: str | None) -> Mapping[str, str]:
    parsed = parse_classes(text or "")
    assert isinstance(parsed, dict)  # as it makes of every text
    return parsed

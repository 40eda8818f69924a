r"""How a person writes which folders hold a class: `no=healthy,yes=glioma+pituitary`.

Of a folder's own name, a comma is written `\,` and a plus `\+`: `yes=T1C\+` is the folder `T1C+`.
"""

from __future__ import annotations

import re


def split_pairs(text: str) -> list[str]:
    """What stands between commas, as `CLASS=FOLDERS`; commas of names are plain ones from here on."""
    return _split(text, ",")


def split_folders(text: str) -> list[str]:
    """The names of folders that are joined by a plus."""
    return _split(text, "+")


def _split(text: str, mark: str) -> list[str]:
    return [part.replace(f"\\{mark}", mark) for part in re.split(rf"(?<!\\){re.escape(mark)}", text)]

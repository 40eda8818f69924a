"""Labelled images in folders: found, checked, divided, decoded. Pillow and numpy only, never tensorflow."""

"""Data in the formats that others publish, brought into the folders that `dualipo run --data` reads (docs/data.md).

Readers give items of rows (`base.py`, `pairs.py`, `captioned.py`, `own.py`); `importing.py` checks the clips, keeps the
count of what is broken, and writes the folder.
"""

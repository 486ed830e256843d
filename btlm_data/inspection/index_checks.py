"""Check that the indexes beside a set are as they were written."""

from __future__ import annotations

import os
from pathlib import Path

from btlm_data.formats import key_index, text_index
from btlm_data.inspection.check import Check, Report


def check_indexes(root: Path, checksum: str, tell: Report) -> None:
    """A check for each index, of keys and of text: every byte of it, and that it is of this dataset.json (which has that
    checksum); no check where there is none.
    """
    from btlm_data.lineage.key_index import check as check_keys
    from btlm_data.lineage.text_index import check as check_text

    kinds = (("key index", key_index.FOLDER, check_keys), ("text index", text_index.FOLDER, check_text))
    for name, folder, check in kinds:
        if not os.path.lexists(root / folder):
            continue
        problem, detail = check(root, checksum)
        if problem is not None:
            repair = "it is damaged; remove the folder, and run `btlm-data index` again"
            tell(Check(name, False, repair, problem))
        else:
            is_stale = detail.startswith("stale")
            tell(Check(name, None if is_stale else True, detail))

"""Check that the text index beside a set is as it was written."""

from __future__ import annotations

import os
from pathlib import Path

from btlm_data.formats import text_index
from btlm_data.inspection.check import Check, Report


def check_text_index(root: Path, checksum: str, tell: Report) -> None:
    """One check: every byte of the index, and that it is of this dataset.json (which has that checksum); no check where there
    is none.
    """
    if not os.path.lexists(root / text_index.FOLDER):
        return
    from btlm_data.lineage.text_index import check

    problem, detail = check(root, checksum)
    if problem is not None:
        tell(
            Check(
                "text index",
                False,
                "it is damaged; remove the folder, and run `btlm-data index` again",
                problem,
            )
        )
    else:
        is_stale = detail.startswith("stale")
        tell(Check("text index", None if is_stale else True, detail))

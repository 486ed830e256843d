"""Check that forgotten documents are masked, all of them and nothing else, as their certificates and the
ledger say.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from btlm_data.errors import DataError
from btlm_data.formats import forgotten
from btlm_data.formats.dataset import Dataset
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.inspection.opening import Opened
from btlm_data.inspection.scan import Job, Scan
from btlm_data.lineage.masks import Masks
from btlm_data.wording import counted


def check_forgotten(
    opened: Opened, manifest: Dataset, jobs: Sequence[Job], scans: Sequence[Scan], tell: Report
) -> None:
    """One check: certificates, tables, ledger and shards agree; no check where nothing was forgotten."""
    if "forgotten" not in manifest.other_inputs:
        if os.path.lexists(opened.root / forgotten.FILE_NAME):
            tell(
                Check(
                    "forgotten",
                    False,
                    "dataset.json says that nothing was forgotten",
                    f"{forgotten.FILE_NAME} is there",
                )
            )
        return
    try:
        chain = forgotten.read(opened.root)
    except DataError as error:
        tell(Check("forgotten", False, "the certificates cannot be used", str(error)))
        return
    problems = [
        f"{opened.name(job.path)}: {scan.unmasked} is not masked"
        for job, scan in zip(jobs, scans, strict=True)
        if scan.unmasked
    ]
    if chain.questions != manifest.other_inputs["forgotten"]:
        problems.append(f"{forgotten.FILE_NAME}: its questions are not those that dataset.json names")
    masks = {job.split: job.masks for job in jobs if job.masks is not None}
    for split, mask in masks.items():
        problems += _account_problems(manifest, chain, split, mask)
    count = sum(len(certificate.documents) for certificate in chain.masking)
    masked = sum(mask.num_labels for mask in masks.values())
    certified = len(chain.certificates)
    detail = (
        f"masked: {counted(count, 'document')}, {counted(masked, 'label position')}, as "
        f"{counted(certified, 'certificate')} {'says' if certified == 1 else 'say'}"
    )
    removed = sum(len(c.documents) for c in chain.certificates if c.how == "remove")
    if removed:
        detail += f"; removed: {counted(removed, 'document')}"
    tell_problems(tell, "forgotten", problems, detail)


def _account_problems(manifest: Dataset, chain: forgotten.Forgotten, split: str, masks: Masks) -> list[str]:
    stated = sum(amounts.tokens for row in manifest.rows("forget", split) for amounts in row.dropped.values())
    certified = [
        document
        for certificate in chain.masking
        for document in certificate.documents
        if document.split == split
    ]
    masked_documents = {span.document for spans in masks.by_row.values() for span in spans}
    problems = []
    if stated != masks.num_labels:
        problems.append(
            f"the ledger (forget, {split}) says {stated} masked tokens, the table of documents {masks.num_labels}"
        )
    if sum(document.masked for document in certified) != masks.num_labels:
        problems.append(
            f"the certificates say {sum(document.masked for document in certified)} masked tokens of {split}, the table {masks.num_labels}"
        )
    if not masked_documents <= {document.document for document in certified}:
        problems.append(f"{split}/documents.parquet: a document is forgotten that no certificate names")
    return problems

"""Read a prepared dataset again, all of it, and compare it with everything it says of itself.

Each check is one line: passed, failed (with the exact place: file, row, plane, position, value, what was
expected), or not made, with the reason. A check that was not made (shards that others made have no ledger) is
never shown as passed. Memory is bounded: what is in different files (samples that follow each other, the
ends of documents) is compared through sums of hashes (kernels/checks.py), and only where those differ are
rows read one by one to name the place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from btlm_data.errors import DataError, InputError
from btlm_data.formats import generations
from btlm_data.formats.dataset import FILE_NAME
from btlm_data.inspection.account_checks import check_disjoint, check_ledger, check_mix
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.inspection.description_checks import check_description, check_provenance
from btlm_data.inspection.duplicates import check_removals
from btlm_data.inspection.file_checks import check_checksums, check_files, check_pages
from btlm_data.inspection.forgotten_checks import check_forgotten
from btlm_data.inspection.generation_checks import check_generations_disjoint, check_listed
from btlm_data.inspection.index_checks import check_indexes
from btlm_data.inspection.opening import Opened, open_path
from btlm_data.inspection.scan import plan_jobs, scan_all
from btlm_data.inspection.shard_checks import check_shards
from btlm_data.inspection.signature import check_certificates, check_generations, check_signature
from btlm_data.inspection.source_checks import check_documents, check_inputs
from btlm_data.inspection.stream_checks import check_streams
from btlm_data.inspection.text_folder import check_text, is_text_folder

_NEED_A_MANIFEST = (
    "fingerprint",
    "configuration",
    "tokenizer",
    "outputs",
    "provenance",
    "checksums",
    "label shift across samples",
    "ends of documents",
    "token sums",
    "documents",
    "ledger",
    "splits disjoint",
)


class Again(NamedTuple):
    """What is to be read from the source once more: so many documents, so many pairs of removals.parquet."""

    documents: int = 0
    removals: int = 0


NOTHING_AGAIN = Again()


def verify(
    path: Path,
    report_line: Callable[[Check], None],
    source: Path | None = None,
    signers: Path | None = None,
    again: Again = NOTHING_AGAIN,
) -> list[Check]:
    """Check the dataset, split, shard or emitted text at `path`; each check is reported as soon as it is made, and all are
    returned.

    source: also compare the input files with those in this folder (or with this file, where there is one).
    again: how many documents of it to read and tokenize again, and how many removed pairs to compare again.
    signers: whose signatures count (signature.py). Raises DataError only if there is nothing at `path`; every
    other fault is a failed check.
    """
    if is_text_folder(path):
        return check_text(path, report_line)
    opened = open_path(path)
    checks: list[Check] = []

    def report(check: Check) -> None:
        checks.append(check)
        report_line(check)

    if opened.chosen is None and (opened.root / generations.FILE_NAME).exists():
        _verify_generations(opened, report, source, signers, again)
    else:
        _verify_generation(opened, report, source, signers, again)
    return checks


def _verify_generations(
    opened: Opened, report: Report, source: Path | None, signers: Path | None, again: Again
) -> None:
    """Every generation of a dataset by itself, and what they are to each other. source, again: for the first;
    the others are verified with theirs by their own folders.
    """
    check_generations(opened.root, signers, report)
    listed = check_listed(opened.root, report)
    _verify_generation(opened, report, source, signers, again)
    for generation in listed[1:]:

        def tell(check: Check, number: int = generation.number) -> None:
            report(Check(f"generation {number}: {check.name}", check.ok, check.detail, check.place))

        _verify_generation(open_path(generation.root), tell, None, signers, NOTHING_AGAIN)
    check_generations_disjoint(listed, report)


def _verify_generation(
    opened: Opened, report: Report, source: Path | None, signers: Path | None, again: Again
) -> None:
    if opened.manifest is not None or opened.sets is not None or signers is not None:
        check_signature(opened.root, signers, report)
    described = opened.sets or opened.manifest
    if described is not None and opened.chosen is None:
        check_pages(opened.root, described.checksum, report)
    if opened.sets is None:
        check_certificates(opened.root, signers, report)
        _verify_set(opened, report, "", source, again)
    else:
        _verify_sets(opened, report, source, signers, again)


def passed(checks: Iterable[Check]) -> bool:
    """Whether no check failed."""
    return all(check.ok is not False for check in checks)


def _verify_sets(
    opened: Opened, report: Report, source: Path | None, signers: Path | None, again: Again
) -> None:
    assert opened.sets is not None
    sets: dict[str, Opened] = {}
    problems = [opened.problem] if opened.problem is not None else []
    for number, reference in enumerate(opened.sets.sets):
        name, folder = reference.name, opened.root / reference.name
        try:
            if not (folder / FILE_NAME).exists():
                problems.append(f"{name}/{FILE_NAME}: missing")
                continue
            sets[name] = open_path(folder)
        except (DataError, InputError) as error:
            problems.append(str(error))
            continue
        value = sets[name].manifest
        if value is None:
            continue  # reported with the set
        pairs = (
            ("checksum", value.checksum, reference.checksum),
            ("fingerprint", value.fingerprint, opened.sets.fingerprint),
            ("set.names", value.set.names, opened.sets.names),
            ("set.index", value.set.index, number),
        )
        problems += [
            f"{name}/{FILE_NAME}: {key} is {stated}, {FILE_NAME} says {expected}"
            for key, stated, expected in pairs
            if stated != expected
        ]
    tell_problems(report, "sets", problems, f"{len(opened.sets.names)} sets: {', '.join(opened.sets.names)}")
    check_provenance(opened.root, opened.sets, None, report)
    for name, opened_set in sets.items():
        check_certificates(opened_set.root, signers, report)
        _verify_set(opened_set, report, f"{name}: ", source, again)
    manifests = [opened_set.manifest for opened_set in sets.values()]
    if len(sets) < len(opened.sets.names) or not all(manifests):
        report(Check("sets disjoint", None, "not made: not every set has a readable dataset.json"))
    elif not any(manifest.set.share is not None for manifest in manifests if manifest):
        report(Check("sets disjoint", None, "not made: every set holds all documents"))
    else:
        groups = [
            (name, [(split, opened_set.documents_path(split)) for split in opened_set.splits])
            for name, opened_set in sets.items()
        ]
        check_disjoint(report, "sets disjoint", groups, "no document is in two sets")


def _verify_set(opened: Opened, report: Report, prefix: str, source: Path | None, again: Again) -> None:
    def tell(check: Check) -> None:
        report(Check(prefix + check.name, check.ok, check.detail, check.place))

    manifest = opened.manifest
    if opened.preparing is not None:
        tell(Check("manifest", False, "the dataset is not finished", opened.preparing))
    elif manifest is None and opened.problem is None:
        tell(Check("manifest", None, "not made: no dataset.json (shards that others made)"))
    elif manifest is None:
        without = "dataset.json cannot be used; only what the shards show by themselves is checked"
        tell(Check("manifest", False, without, opened.problem))
    elif opened.problem is not None:
        tell(Check("manifest", False, "dataset.json is not as it was written", opened.problem))
    else:
        shown = f"format version {manifest.format_version}, checksum {manifest.checksum[:16]}..."
        tell(Check("manifest", True, shown))
    if manifest is not None:
        check_description(opened, manifest, tell)
        check_files(opened, manifest, tell)
    jobs = plan_jobs(opened)
    scans = scan_all(jobs)
    if manifest is not None:
        check_checksums(opened, manifest, jobs, scans, tell)
    check_shards(opened, jobs, scans, tell)
    if manifest is None:
        for name in _NEED_A_MANIFEST:
            tell(Check(name, None, "not made: only a dataset.json could say what to expect"))
        return
    check_streams(opened, manifest, jobs, scans, tell)
    check_forgotten(opened, manifest, jobs, scans, tell)
    check_indexes(opened.root, manifest.checksum, tell)
    check_ledger(manifest, tell)
    check_mix(tell, manifest, opened.root)
    tables = [(split, [(split, opened.documents_path(split))]) for split in manifest.splits]
    if opened.chosen is not None:
        tell(Check("splits disjoint", None, "not made: one split was named"))
    elif len(tables) < 2:
        tell(Check("splits disjoint", None, "not made: there is one split"))
    else:
        check_disjoint(tell, "splits disjoint", tables, "no document is in two splits")
    if source is not None:
        check_inputs(manifest, source, tell)
        if again.documents:
            check_documents(opened, manifest, source, again.documents, tell)
    if again.removals:
        check_removals(opened, manifest, source, again.removals, tell)

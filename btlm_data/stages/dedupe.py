"""Find duplicates and near-duplicates over all sources and splits, and decide which documents stay.

reads   every block's .sketch (exact hashes, band keys [, signatures]) and .docs; an index of earlier runs,
        where requested
writes  dedupe/fates (dedupe/clusters.py), dedupe/table/clusters.parquet, removals.parquet; the index
unit    group of blocks (split, documents, cluster) . range of keys (sort) . range of documents (exact, fates) . group of
        components (decide) . whole (components, while one process can hold them; table)
balance one survivor per component of train documents; none where the component holds a validation or test
        document
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from btlm_data import by_group
from btlm_data.blocks import Block
from btlm_data.dedupe import adding, clusters, decided, gates, removals
from btlm_data.dedupe.adding import PackedTexts
from btlm_data.dedupe.index import Index
from btlm_data.dedupe.keys import Chosen
from btlm_data.dedupe.ranges import Ranges
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.dedupe.sizes import Nominated, Sizes
from btlm_data.dedupe.steps import VERSION, Steps, list_ranges
from btlm_data.dedupe.text_steps import KeptTextsPlanner, MembersPlanner, TextSteps, list_by_group
from btlm_data.engine.runner import Runner
from btlm_data.estimate import Estimate, Workload
from btlm_data.fingerprint import digest
from btlm_data.formats.columns import Columns
from btlm_data.recipe.models import DedupeSettings, Run
from btlm_data.task import Artifact, Counts, Step, TaskResult
from btlm_data.task_files import write_list


class Deduplicated(msgspec.Struct, frozen=True):
    """What the stage hands on. fates, copies: lists of files (dedupe/clusters.py). counts: its cells of the ledger. index_lineage: of the
    index it matched against.
    """

    fates: Artifact
    clusters: Artifact
    removals: Artifact
    copies: Artifact
    summary: Mapping[str, Any]
    counts: Counts
    index_lineage: list[list[str]]


def index_bytes(workload: Workload) -> int:
    """What an index of all documents takes."""
    dedupe, volume = workload.settings.dedupe, workload.volume
    if dedupe.method == "none":
        return 0
    settings = _settings(dedupe, workload.run)
    with_signatures = not settings.by_text and (dedupe.index is not None or settings.index_needs is not None)
    return settings.index_bytes(volume.documents, volume.text_bytes, with_signatures=with_signatures)


def estimate(workload: Workload) -> list[Estimate]:
    """What finding duplicates takes, and being added to an index; besides what an index of earlier runs adds."""
    dedupe = workload.settings.dedupe
    if dedupe.method == "none":
        return []
    settings = _settings(dedupe, workload.run)
    in_components = Nominated(
        round(workload.volume.documents * workload.in_components),
        round(workload.volume.text_bytes * workload.in_components),
    )
    sizes = Sizes(workload.volume.documents, settings)
    steps = sizes.estimate(workload.rates, workload.volume.parts, workload.blocks, in_components)
    if dedupe.index is not None:
        steps += adding.estimate(sizes, workload)
    return steps


def run(
    runner: Runner,
    blocks: Sequence[Block],
    table: Artifact,
    dedupe: DedupeSettings,
    how: Run,
    plan_members: MembersPlanner,
    plan_kept_texts: KeptTextsPlanner | None,
) -> Deduplicated | None:
    """Deduplicate all blocks; None if the recipe asks for none. table: of the blocks. plan_members,
    plan_kept_texts: members.py; without the latter nothing is added to an index.

    Raises SafetyStop if a source would lose more than `max_removed` of its bytes, ConfigError for an index of
    another kind.
    """
    if dedupe.method == "none":
        return None
    settings = _settings(dedupe, how)
    index = None
    if dedupe.index is not None:
        with runner.removing_damaged():
            index = Index(
                dedupe.index, _content(runner, blocks, settings), settings.index_kind, settings.index_needs
            )
        settings = replace(settings, index=index.reader)
    lineage = digest(
        VERSION,
        [
            [b.split, b.num_documents, b.docs.checksum, b.sketch.checksum if b.sketch else None]
            for b in blocks
        ],
        dedupe.model_dump(
            mode="json", exclude={"max_removed", "max_component", "expected_removed", "preset", "index"}
        ),
        index.reader.lineage if index is not None else None,
    )
    steps = Steps(blocks, table, settings, lineage).as_before(runner)
    work = runner.stores.work
    work.delete([decided.NAME])
    pairs: Artifact | None = None
    compared: Sequence[Artifact] = ()
    if settings.by_text:
        done = TextSteps(steps, plan_members).run(runner)
        joined, members, pairs, compared = done.joined, done.members, done.pairs, done.compared
    else:
        joined = steps.run(runner)
        planned = plan_members(joined.components, False)
        members = list_by_group(runner, planned, joined.num_groups, settings.memory_bytes)
    ranges = steps.sizes.ranges_of_fates
    decided_groups = runner.run(
        removals.plan(joined.num_groups, members, compared, settings, ranges, lineage)
    )
    fates, copies = _fates(runner, decided_groups, ranges, settings, lineage)
    shown = clusters.merged([result.counts.extra["largest"] for result in decided_groups])
    listing = clusters.plan_clusters(
        blocks, joined.components, fates, copies, shown, lineage, wide=ranges.wide
    )
    of_ranges = runner.run(listing)
    num_clusters = sum(result.counts.extra["clusters"] for result in decided_groups)
    counts, removed, summary = clusters.summarised(of_ranges, shown, num_clusters)
    if dedupe.verify == "signature":
        summary["verified_pairs"] = {
            "compared": joined.extra["compared"],
            "below_threshold": joined.extra["rejected"],
        }
    if settings.by_text:
        summary["compared_pairs"] = dict(done.amounts)
    tables = _tables(runner, {"clusters": of_ranges, "removals": decided_groups}, wide=ranges.wide)
    decided.write(
        work,
        decided.Decided(
            dedupe,
            joined.num_groups,
            joined.components,
            members,
            pairs,
            decided.amounts(counts),
            index.reader.runs if index is not None else (),
        ),
    )
    runner.named.add(decided.NAME)
    evidence = gates.Evidence(
        runner.stores, tables["clusters"], tables["removals"], joined.components, members
    )
    gates.check(removed, summary, dedupe, how.accept_removal or how.accept_removal_of, evidence)
    if index is not None and plan_kept_texts is not None and not index.is_added:
        chosen = Chosen(copies, "text_stays") if settings.by_text else Chosen(joined.components, "root")
        with runner.removing_damaged():
            if settings.by_text:
                kept = plan_kept_texts(copies)
                adding.add(runner, steps, index, chosen, _packed_texts(runner.run(kept), blocks))
                runner.discard(kept)
            else:
                adding.add(runner, steps, index, chosen, with_signatures="bands" in settings.key_kinds)
    return Deduplicated(
        fates,
        tables["clusters"],
        tables["removals"],
        copies,
        summary,
        counts,
        index.reader.lineage if index is not None else [],
    )


def _settings(dedupe: DedupeSettings, how: Run) -> ClusterSettings:
    return ClusterSettings(
        dedupe,
        how.memory_per_worker,
        threads=how.threads_alone,
        memory_alone=how.memory_alone,
        workers=how.workers,
    )


def discard_passed(runner: Runner) -> None:
    """Remove what was moved once more since: the dataset is complete."""
    for folder in ("dedupe/members", "dedupe/pairs"):
        by_group.discard_passed(runner.stores.work, folder)


def _fates(
    runner: Runner,
    decided_groups: Sequence[TaskResult],
    ranges: Ranges,
    settings: ClusterSettings,
    lineage: str,
) -> tuple[Artifact, Artifact]:
    """The fates of all documents, and how many each stands for: lists of files (clusters.py)."""
    passes = list[Step]()
    written = [_output(result, ".cols") for result in decided_groups]
    held = by_group.gathered(
        runner, "dedupe.decide", written, ranges.count, settings.memory_bytes, passes=passes
    )
    runner.named.add(name := "dedupe/decided-groups.json")
    listed = by_group.write_list(runner.stores.work, name, held)
    results = runner.run(clusters.plan_fates(listed, ranges, lineage))
    runner.discard(*passes)
    fates, copies = (
        list_ranges(runner, name, ranges, [result.outputs[number] for result in results])
        for number, name in enumerate((clusters.FATES, clusters.COPIES))
    )
    return fates, copies


def _tables(runner: Runner, parts: Mapping[str, Sequence[TaskResult]], *, wide: bool) -> dict[str, Artifact]:
    """clusters.parquet and removals.parquet. parts: results of the tasks that wrote the parts of each. wide: ordinals take 64 bits."""
    lists: dict[str, Artifact] = {}
    for kind, results in parts.items():
        runner.named.add(name := f"dedupe/{kind}.json")
        artifacts = [_output(result, ".parquet") for result in results]
        lists[f"{kind}.parquet"] = write_list(runner.stores.work, name, artifacts)
    results = runner.run(removals.plan_tables(lists, wide=wide))
    return {kind: result.outputs[0] for kind, result in zip(parts, results, strict=True)}


def _output(result: TaskResult, ending: str) -> Artifact:
    [artifact] = [output for output in result.outputs if output.name.endswith(ending)]
    return artifact


def _packed_texts(results: Sequence[TaskResult], blocks: Sequence[Block]) -> list[PackedTexts]:
    """What the step kept-texts (members.py) has written: a file of each block, in order."""
    files = [output for result in results for output in result.outputs]
    pieces = [of_block for result in results for of_block in result.counts.extra["pieces"]]
    return [
        PackedTexts(block.first_ordinal, file, of_block)
        for block, file, of_block in zip(blocks, files, pieces, strict=True)
    ]


def _content(runner: Runner, blocks: Sequence[Block], settings: ClusterSettings) -> str:
    """A run's name in an index: its documents' texts and the kind of its sketches.

    Other tokenizers or lengths make the same run.
    """
    texts = [
        [block.split, Columns(runner.stores.work, block.sketch).meta["content"]]
        for block in blocks
        if block.sketch is not None
    ]
    return digest(list(settings.index_kind), settings.index_needs, settings.dedupe.holdout, texts)[:32]
